"""Techniques taken apart: quality against bytes, and one axis at a time."""
