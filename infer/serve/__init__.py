"""`python -m infer.serve`."""
