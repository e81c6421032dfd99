"""Memory where no model runs: requests served from a fixed one, caches at production scale, layouts."""
