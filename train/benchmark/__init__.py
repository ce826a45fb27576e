"""`python -m train.benchmark`."""
