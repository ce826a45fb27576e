"""A golden pair whose target has a tokenizer: bytes, and a filler for every id above them."""

import json
import pathlib
import shutil

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support import MODELS

THINKING = (  # as Qwen3's: what was thought is written of the last turn alone, and a reply may be asked for without thinking
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def byte_tokenizer(size: int) -> Tokenizer:
    """Ids 0 to 255 are bytes, so a character of several bytes is several tokens; id 256 ends a text; the rest are words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {f"w{index}": index for index in range(257, size)}
    tokenizer = Tokenizer(models.BPE(vocabulary | {"<end>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def with_tokenizer(folder: pathlib.Path, template: bool = False) -> pathlib.Path:
    """A copy of the Vicuna-like golden target in ``folder``, with a tokenizer."""
    shutil.copytree(MODELS / "target_mha", folder)
    return save_tokenizer(folder, 503, template)


def save_tokenizer(folder: pathlib.Path, size: int, template: bool = False) -> pathlib.Path:
    """Writes a tokenizer of ``size`` ids beside a target."""
    byte_tokenizer(size).save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    if template:
        fields["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder
