"""What a round must compute and read, counted by hand: operations and bytes of one chip, whatever the compiler makes of it.

Weights are read once per pass of the target and once per drafted position of the head; the cache once per pass. What is
made and used up on the way (activations, scores, logits) is taken to stay on the chip. So the times are floors.
"""

import dataclasses

from redrafter_jax.model.drafter import DrafterConfig
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
    head: DrafterConfig
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
    """A pass of the target over N nodes per row; N = 1 is an autoregressive step."""
    config = setting.config
    D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    per_layer = D * C * (H + 2 * K) + H * C * D + 3 * D * F
    weights = (config.num_hidden_layers * per_layer + D * config.vocab_size) / setting.model
    tokens = setting.rows * nodes
    attention = 4 * tokens * (setting.slots + nodes) * H * C * config.num_hidden_layers / setting.model
    cache = 2 * setting.rows * setting.slots * K * C * config.num_hidden_layers / setting.model
    return Work(2 * tokens * weights + attention, setting.width * (weights + cache))


def draft(setting: Setting, width: int, length: int) -> Work:
    """A beam search of W beams over L positions: L passes of the head, one after the other."""
    if length == 0:
        return Work(0, 0)
    D, E, V = setting.head.hidden_size, setting.head.exit_size, setting.head.draft_vocab or setting.head.vocab_size
    dense = [(2 * D, E)] * setting.head.projects + [(E, E)] * setting.head.num_blocks
    of_h = D * dense[0][1] if dense else 0  # the first layer's share of h, once for all beams and positions
    step = sum(fan_in * fan_out for fan_in, fan_out in dense) - of_h + 2 * D * D * setting.head.rnn + E * V
    tokens = setting.rows * width * length
    flops = 2 * (tokens * step + setting.rows * of_h) / setting.model
    return Work(flops, setting.width * (length * step + of_h) / setting.model)


def knee(setting: Setting, chip: Chip) -> float:
    """The nodes per row at which a pass of the target goes from memory- to compute-bound: where operations over bytes reach
    the ridge. The nodes' attention to each other is left out, so that operations grow by the same with every node."""
    one, two = verify(setting, 1), verify(dataclasses.replace(setting, batch=2 * setting.batch), 1)
    return chip.ridge * one.bytes / (two.flops - one.flops)
