"""Serving from a fixed memory: requests that arrive over time, and what holds their caches."""
