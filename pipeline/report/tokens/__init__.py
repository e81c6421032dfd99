"""Techniques beside the full cache, level by level: time, bytes and quality, and the first against the last."""
