"""`python -m infer.benchmark`."""
