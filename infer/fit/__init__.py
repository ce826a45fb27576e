"""`python -m infer.fit`."""
