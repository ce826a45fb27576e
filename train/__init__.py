"""Training: `python -m train.main` for a draft head, `python -m train.demo` for the embedded pair."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it says that it found no PyTorch, which nobody needs here
