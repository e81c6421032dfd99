"""The model level: trained architectures, what they learned, hold and take."""
