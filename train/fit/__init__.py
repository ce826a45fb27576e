"""`python -m train.fit`."""
