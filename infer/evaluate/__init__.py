"""`python -m infer.evaluate`."""
