"""The former name of `python -m infer.evaluate`."""

import sys

from infer.command import moved

if __name__ == "__main__":
    sys.exit(moved("train.measure", "infer.evaluate"))
