"""The former name of `python -m train.demo.corpus`."""

import sys

from infer.command import moved

if __name__ == "__main__":
    sys.exit(moved("train.corpus", "train.demo.corpus"))
