"""Evaluates a head on held-out examples: loss, accuracies, and tokens per step of real decoding at two beam shapes."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from infer import failures
from redrafter_jax.cross_entropy import MAX_RANK
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.heads import fit_shape, proposer_of_head
from redrafter_jax.decode.propose.medusa import MAX_CHILDREN, grow
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.reply import mean_tokens_per_step
from redrafter_jax.drift import Drift
from redrafter_jax.files.heads import Head
from redrafter_jax.loss import LossConfig, Metrics
from redrafter_jax.model import vocabulary
from redrafter_jax.model.lora import Adapter, adapt
from redrafter_jax.model.medusa import MedusaHeads
from redrafter_jax.model.target import Target
from train.data.rows import Rows, put_batch
from train.run import joint, step
from train.run.recipe import Recipe

EVALUATED_SHAPES = (Shape(1, 4), Shape(4, 4))
NEW_TOKENS = 64  # decoded after each prompt
MAX_PROMPT_TOKENS = 128
MIN_BATCH_PROMPTS = 8
TREE_NODES = 64  # of the tree that is written with Medusa's heads, as many as the published ones have


class Evaluation:
    """The batches and prompts of an evaluation; empty where ``held_out`` is None or the recipe evaluates never."""

    def __init__(self, target: Target, recipe: Recipe, held_out):
        self.target, self.recipe = target, recipe
        self.batches, self.prompts = [], []
        if held_out is None or recipe.evaluate_every == 0:
            return
        rows = Rows(held_out, recipe.row_length, "--held-out")
        size = recipe.batch // recipe.accumulate
        numbers = np.linspace(0, len(rows) - 1, -(-min(recipe.evaluation_rows, len(rows)) // size) * size).astype(int)
        for part in numbers.reshape(-1, size):
            read = [rows[int(number)] for number in part]
            arrays = {name: np.stack([row[name] for row in read]) for name in read[0] if name != "index"}
            self.batches.append(put_batch(arrays))
        self.prompts = cut_prompts(held_out, recipe.evaluation_rows, target.config.max_position_embeddings)
        ranks = MAX_CHILDREN if recipe.is_medusa else MAX_RANK
        self.update = jax.jit(functools.partial(step.evaluate, config=LossConfig(recipe.positions, ranks=ranks)))

    def is_due(self, index: int) -> bool:
        every = self.recipe.evaluate_every
        return bool(self.batches) and (index % every == 0 or index == self.recipe.steps)

    def loss(self, drafter: Head, adapter: Adapter | None = None) -> float | None:
        """Cross-entropy against the text, in nats, summed over drafted positions; None: no examples are held out."""
        return self._metrics(drafter, self._adapted(adapter))["loss"] if self.batches else None

    def measure(self, drafter: Head, adapter: Adapter | None = None) -> dict:
        """The loss, top-1..5 accuracies per position, and, where there are prompts, tokens per step of greedy decoding
        by beam shape; with an adapter all of them of the adapted target, and how far that is from the original."""
        target = self._adapted(adapter)
        figures = self._metrics(drafter, target)
        if adapter is not None:
            figures |= join_drifts([joint.measure_drift(self.target, adapter, batch) for batch in self.batches])
        narrow = vocabulary.cast(drafter, self.target.norm[...].dtype)
        for shape in EVALUATED_SHAPES if self.prompts else ():
            shape = fit_shape(drafter.config, shape)
            found = measure_tokens_per_step(target, narrow, shape, self.prompts)
            if found is not None:
                figures[f"tokens_per_step_{shape.width}x{shape.length}"] = found
        return figures

    def _adapted(self, adapter: Adapter | None) -> Target:
        return self.target if adapter is None else adapt(self.target, adapter)

    def _metrics(self, drafter: Head, target: Target) -> dict:
        return join_metrics([self.update(drafter, target, batch)[1] for batch in self.batches])


def with_tree(head: Head, last: dict) -> Head:
    """Medusa's heads with the tree that the accuracies of an evaluation suggest; any other head, or without accuracies, as it
    is."""
    cumulative_KR = last.get("held_out_accuracy")
    if not isinstance(head, MedusaHeads) or cumulative_KR is None:
        return head
    head = nnx.clone(head)
    tree = grow(np.diff(np.asarray(cumulative_KR), axis=1, prepend=0.0), TREE_NODES)
    head.config = dataclasses.replace(head.config, tree=tree)
    return head


def note_of_tree(head: Head) -> str | None:
    """What there is to say of Medusa's heads without a tree of their own."""
    if not isinstance(head, MedusaHeads) or head.config.tree is not None:
        return None
    return "the heads draft the published tree; an evaluation's accuracies would give their own (--evaluate-every, --held-out)"


def join_metrics(parts: list[Metrics]) -> dict:
    """The loss and the accuracies ``[K, R]`` over several batches with hard labels, as if they were one batch."""
    loss, accuracy, scored, inside = (
        np.stack([np.asarray(getattr(part, name)) for part in parts]) for name in ("loss", "accuracy", "scored", "inside")
    )
    loss_K = (loss * inside).sum(0) / np.maximum(inside.sum(0), 1)
    accuracy_KR = (accuracy * scored[..., None]).sum(0) / np.maximum(scored.sum(0), 1)[:, None]
    return {"loss": float(loss_K.sum()), "accuracy": accuracy_KR.round(4).tolist()}


def join_drifts(parts: list[Drift]) -> dict:
    """The figures of a drift over several batches, as if they were one: means weighted by places."""
    host = [{field.name: float(getattr(part, field.name)) for field in dataclasses.fields(Drift)} for part in parts]
    places = np.array([part.pop("places") for part in host])
    means = {name: float(np.array([part[name] for part in host]) @ places / max(1, places.sum())) for name in host[0]}
    return {name: round(value, 5) for name, value in means.items()}


def cut_prompts(examples, count: int, context: int) -> list[list[int]]:
    """Token ids of prompts: examples up to their first label or, in plain text, a quarter of the example."""
    found = []
    for number in np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int):
        tokens, labelled = (np.asarray(examples[int(number)][name]) for name in ("tokens", "labelled"))
        end = int(np.argmax(labelled)) or len(tokens) // 4
        begin = max(0, end - min(MAX_PROMPT_TOKENS, context - NEW_TOKENS))
        if end > begin:
            found.append(tokens[begin:end].tolist())
    return found


def measure_tokens_per_step(target: Target, drafter: Head, shape: Shape, given: list[list[int]]) -> float | None:
    """Tokens per target pass after the prefill, over greedy continuations of the prompts. None: a reply ended in an
    error, because the target's logits were not finite."""
    shards = jax.sharding.get_abstract_mesh().shape["data"]
    rows = -(-MIN_BATCH_PROMPTS // shards) * shards
    engine = Engine(target, proposer_of_head(drafter, shape))
    replies = list(engine.generate(given, Sampling(), Limits(new=NEW_TOKENS), batch=rows))
    return None if failures.count(replies) else mean_tokens_per_step(replies)
