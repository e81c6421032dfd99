"""Techniques of other packages, one small adapter each, so that they are measured as ours are."""
