"""What stands around a cache: how weights are held, and which engine serves."""
