"""The techniques: what of the KV cache is kept, and how it is held."""
