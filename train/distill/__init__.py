"""`python -m train.distill`."""
