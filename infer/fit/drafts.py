"""The shapes of what drafts, from the options of `infer.fit`."""

import dataclasses

from infer import synthetic
from infer.options import check_drafted, read_beams
from redrafter_jax.errors import BadInput
from redrafter_jax.files.heads import DraftsConfig
from redrafter_jax.model import candidates, vocabulary
from redrafter_jax.model.parts import evenly
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices import topology

MAX_RANK = 1 << 14  # of a bigram term, as train.main takes it


def config_of(options, target: TargetConfig) -> DraftsConfig:
    """The head, as decoding unties it, or the small model.

    Raises:
      BadInput: --draft-model names no shapes, or another vocabulary, or --bigram, --gated, --depths, --candidates or --rank is not
        for these heads, or out of range.
    """
    parts = {"bigram": options.bigram, "gated": options.gated, "depths": options.inner_layers}
    few = {"candidates": options.candidates, "rank": options.rank}
    foreign = [name for name, value in (parts | few).items() if value and options.method != "recurrent"]
    if foreign:
        raise BadInput(f"--{foreign[0]} is of --method recurrent; leave it out")
    if not 0 <= options.inner_layers < target.num_hidden_layers:
        below = f"from 0 to below the {target.num_hidden_layers} layers of --model"
        most = target.num_hidden_layers - 1
        raise BadInput(f"--depths should be {below}, not {options.inner_layers}; give --depths {most}")
    if not 0 <= options.bigram <= min(target.vocab_size, MAX_RANK):
        raise BadInput(f"--bigram should be from 0 to {min(target.vocab_size, MAX_RANK)}, not {options.bigram}")
    if options.draft_model is not None:
        model = topology.read_target_config(options.draft_model, "--draft-model")
        if model.vocab_size != target.vocab_size:
            words = f"should share the vocabulary of {target.vocab_size} tokens of --model, but has {model.vocab_size}"
            raise BadInput(f"--draft-model {words}")
        return dataclasses.replace(model, max_position_embeddings=target.max_position_embeddings)
    if options.method == "medusa":
        head = synthetic.medusa_config(target, options.kind, options.head_vocab, options.positions, options.blocks)
    else:
        shape = synthetic.head_config(target, options.kind, options.head_vocab)
        read = evenly(target.num_hidden_layers, options.inner_layers)
        head = dataclasses.replace(shape, num_blocks=options.blocks, bigram=options.bigram, gated=options.gated, depths=read)
        wrong = candidates.wrong_numbers(head, *few.values()) if any(few.values()) else None
        if wrong:
            raise BadInput(f"--{wrong[0]} {wrong[1]}")
        head = dataclasses.replace(head, candidates=options.candidates, candidate_rank=options.rank)
        for text, (width, _) in zip(options.beams, read_beams(options.beams), strict=True):
            check_drafted(f"--beams {text}: its width", width, target.vocab_size, head.draft_vocab, head.candidates)
    return vocabulary.materialised_config(head, target)
