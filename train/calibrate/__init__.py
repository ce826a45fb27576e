"""`python -m train.calibrate`."""
