"""`python -m infer.generate`."""
