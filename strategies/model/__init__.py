"""Model-level techniques: architectures that hold less by themselves, and the caches that their decoding needs."""
