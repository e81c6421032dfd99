"""The page of the benchmark: every technique beside the default cache, judged by its bars."""
