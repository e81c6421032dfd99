"""Engines that run a model: Transformers in three ways, our loop, and vLLM; one core measures them in turns."""
