"""What follows from the records: insights, use cases, a decision tree and a guide, all by rules."""
