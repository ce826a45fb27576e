"""Training: `python -m train.main` for a draft head, `python -m train.demo` for the embedded pair."""
