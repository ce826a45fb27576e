"""The embedded pair, and what a model's folder holds besides weights: the tokenizer.

Not here: weights, configs, the ids that end a text, the hub (`redrafter_jax`). Nothing here starts JAX, so a wrong name is
reported at once.
"""

import os
import pathlib

from redrafter_jax.errors import BadInput

EMBEDDED = pathlib.Path(__file__).parent / "demo_pair"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def embedded(part: str) -> pathlib.Path:
    """A folder of the embedded pair: target, drafter or drafter_slim.

    Raises:
      BadInput: the pair is not there.
    """
    folder = EMBEDDED / part
    if not (folder / "config.json").is_file():
        raise BadInput(f"the embedded pair lacks {folder}; give --target and --drafter, or train a pair with train.demo")
    return folder


def tokenizer(folder: pathlib.Path, option: str = "--target"):
    """The folder's tokenizer, or None where it has none.

    Raises:
      BadInput: there is one, and it is broken.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it says that it found no PyTorch, which nobody needs here
    import transformers  # takes seconds, and prompts of token ids do not need it

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise BadInput(f"{option}: the tokenizer in {folder} cannot be read ({error})") from None
