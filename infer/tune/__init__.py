"""`python -m infer.tune`."""
