"""The system level: how weights are held, where pages of the cache lie, who runs the model."""
