"""A training run of a head."""
