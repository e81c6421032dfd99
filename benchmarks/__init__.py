"""Benchmarks of our own parts against other people's; they write records too."""
