"""Models that read pictures too: the text model inside is of a family, and the rest is passed over.

Their config.json has that of the text model as `text_config`. Its tensors have a prefix, of which there are two layouts, and all
others are known by theirs. Where there is no picture, such a model computes what its text model does.
"""

import re
from typing import Any

from redrafter_jax.errors import BadInput, shown

TEXT_TYPES = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # model_type -> that of its text_config, if it does not say
LAYOUTS = [
    (r"language_model\.(.+)", r"\1"),  # until transformers 4.51, and most published files
    (r"model\.language_model\.(.+)", r"model.\1"),
    (r"(lm_head\..+)", r"\1"),
]
IGNORED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")


def text_fields(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """The config.json of the text model, with what the outer one says of both.

    Raises:
      BadInput: there is none.
    """
    kind, text = fields["model_type"], fields.get("text_config")
    if not isinstance(text, dict):
        raise BadInput(f"{what}: text_config in config.json should be an object, as the model_type is {kind!r}, not {shown(text)}")
    outer = ("tie_word_embeddings", "quantization_config")
    return {"model_type": TEXT_TYPES[kind]} | text | {key: fields[key] for key in outer if fields.get(key) is not None}


def text_name(stored: str) -> str | None:
    """What a tensor of such a checkpoint is called in one of the text model alone; None: it is no part of that."""
    return next((match.expand(name) for layout, name in LAYOUTS if (match := re.fullmatch(layout, stored))), None)
