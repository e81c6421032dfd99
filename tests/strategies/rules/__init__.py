"""What each published rule evicts, spelled out token by token: one file per technique, found by its name."""
