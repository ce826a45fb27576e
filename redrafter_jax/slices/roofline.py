"""What a round must compute and read: operations and bytes of one chip, whatever the compiler makes of it.

Weights are read once per pass of the target and once per drafted position of the head; the cache once per pass. What is
made and used up on the way (activations, scores, logits) is taken to stay on the chip. So the times are floors. The matrices
are those that the models' own initialisers make; norms and biases are nothing beside them.
"""

import dataclasses

import jax

from redrafter_jax.devices import placement
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.quantised import Quantised
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """flops: operations; bytes: HBM traffic, of one chip."""

    flops: float
    bytes: float

    def seconds(self, chip: Chip) -> float:
        """The least time: whichever of computing and reading takes longer."""
        return max(self.flops / chip.peak, self.bytes / chip.bandwidth)

    def is_compute_bound(self, chip: Chip) -> bool:
        return self.flops / self.bytes > chip.ridge


@dataclasses.dataclass(frozen=True)
class Setting:
    """A pair on a mesh. batch: rows altogether; slots: of the cache, per row; width: bytes of a number."""

    config: TargetConfig
    head: DrafterConfig | MedusaConfig | TargetConfig
    data: int
    model: int
    batch: int
    slots: int
    width: int

    @property
    def rows(self) -> float:
        """Rows of a data shard."""
        return self.batch / self.data


def verify(setting: Setting, nodes: int) -> Work:
    """A pass of the target over N nodes per row; N = 1 is an autoregressive step. Of experts it reads those that some token
    chooses, if every token chose any of them equally often."""
    config, layers = setting.config, setting.config.num_hidden_layers
    parts = [*placement.abstract_layers(config), (1, placement.abstract_target(config).lm_head)]
    tokens = setting.rows * nodes
    chosen = config.num_experts_per_tok / config.num_experts if config.num_experts else 0
    some, width = 1 - (1 - chosen) ** tokens, setting.width  # some: the share of experts that is read
    used = sum(count * (_numbers(each) + chosen * _numbers(each, axes=3)) for count, each in parts) / setting.model
    read = sum(count * (_bytes(each, width) + some * _bytes(each, width, axes=3)) for count, each in parts) / setting.model
    scores = tokens * (setting.slots + nodes) * config.num_attention_heads * layers / setting.model
    cache = setting.rows * setting.slots * placement.bytes_of_token(config, "int8") / setting.model
    return Work(2 * tokens * used + 4 * scores * config.head_dim, read + setting.width * cache)


def draft(setting: Setting, width: int, length: int, reread: int = 2) -> Work:
    """A beam search of W beams over L positions: L passes of the head or the small model, one after the other. Medusa's heads
    need one. ``reread``: tokens that a small model reads again."""
    if length == 0:
        return Work(0, 0)
    if isinstance(setting.head, MedusaConfig):
        return _guess(setting, setting.head)
    if isinstance(setting.head, TargetConfig):
        return _passes(setting, setting.head, width, length, reread)
    head = placement.abstract_head(vocabulary.materialised_config(setting.head, setting.config))
    of_h = _numbers(head.weight_of_h()) + _numbers(head.depths)  # multiplied once for all beams and positions
    step, looked_up = _numbers(head) - of_h - _numbers(head.table()), 0
    if head.candidates is not None:  # of these matrices a drafted token reads the rows of its candidates alone
        step -= _numbers((head.candidates.rows, head.candidates.bigram_rows))
        looked_up = setting.head.candidates * (setting.head.exit_size + setting.head.bigram)
    elif head.lm_head is None:
        step += _numbers(placement.abstract_target(setting.config).lm_head)
    tokens = setting.rows * width * length
    flops = 2 * (tokens * (step + looked_up) + setting.rows * of_h) / setting.model
    return Work(flops, setting.width * (length * step + tokens * looked_up + of_h) / setting.model)


def _guess(setting: Setting, heads: MedusaConfig) -> Work:
    """All K of Medusa's heads at once, whatever their tree. An LM head that they share is read once."""
    shapes = placement.abstract_head(heads)
    blocks, own = _numbers(shapes.blocks), _numbers(shapes.lm_heads)
    shared = 0 if own else heads.hidden_size * (heads.draft_vocab or heads.vocab_size)
    flops = 2 * setting.rows * (blocks + own + heads.num_heads * shared) / setting.model
    return Work(flops, setting.width * (blocks + own + shared) / setting.model)


def _passes(setting: Setting, model: TargetConfig, width: int, length: int, reread: int) -> Work:
    """Passes of a small model: over the tokens that it reads again, then over W tokens for every further position."""
    own = dataclasses.replace(setting, config=placement.repeat_kv_heads(model, setting.model))
    first, further = verify(own, reread), verify(own, width)
    return Work(first.flops + (length - 1) * further.flops, first.bytes + (length - 1) * further.bytes)


def knee(setting: Setting, chip: Chip) -> float:
    """The nodes per row at which a pass of the target goes from memory- to compute-bound: where operations over bytes reach
    the ridge. The nodes' attention to each other is left out, so that operations grow by the same with every node."""
    one, two = verify(setting, 1), verify(dataclasses.replace(setting, batch=2 * setting.batch), 1)
    return chip.ridge * one.bytes / (two.flops - one.flops)


def _numbers(shapes, axes: int = 2) -> int:
    """How many numbers the matrices among some weights have; those of experts have three axes."""
    return sum(matrix.size for matrix in _matrices(shapes, axes))


def _bytes(shapes, width: int, axes: int = 2) -> int:
    """The bytes of these matrices: ``width`` for a number, or one where it is quantised."""
    return sum(matrix.size * min(width, matrix.dtype.itemsize) for matrix in _matrices(shapes, axes))


def _matrices(shapes, axes: int) -> list:
    """Matrices without their scales."""
    weights = jax.tree.leaves(shapes, is_leaf=lambda part: isinstance(part, Quantised))
    values = [part.values if isinstance(part, Quantised) else part for part in weights]
    return [matrix for matrix in values if matrix.ndim == axes]
