"""`python -m train.demo`: the embedded pair, made from text that is on the machine."""
