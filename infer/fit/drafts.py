"""The shapes of what drafts, from the options of `infer.fit`."""

import dataclasses

from infer import synthetic
from redrafter_jax.errors import BadInput
from redrafter_jax.files.heads import DraftsConfig
from redrafter_jax.model import vocabulary
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices import topology


def config_of(options, target: TargetConfig) -> DraftsConfig:
    """The head, as decoding unties it, or the small model.

    Raises:
      BadInput: --draft-model names no shapes, or another vocabulary.
    """
    if options.draft_model is not None:
        model = topology.read_target_config(options.draft_model, "--draft-model")
        if model.vocab_size != target.vocab_size:
            words = f"should share the vocabulary of {target.vocab_size} tokens of --model, but has {model.vocab_size}"
            raise BadInput(f"--draft-model {words}")
        return dataclasses.replace(model, max_position_embeddings=target.max_position_embeddings)
    if options.method == "medusa":
        head = synthetic.medusa_config(target, options.head, options.head_vocab, options.positions, options.blocks)
    else:
        head = dataclasses.replace(synthetic.head_config(target, options.head, options.head_vocab), num_blocks=options.blocks)
    return vocabulary.materialised_config(head)
