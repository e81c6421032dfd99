"""Our techniques beside the caches that Transformers brings; records of their own."""
