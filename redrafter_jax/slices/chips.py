"""What TPU chips can do, as their maker publishes it, and what the compiler for them assumes. Not here: any measurement.

Sources: the "System architecture" tables of cloud.google.com/tpu/docs for v5e, v5p and v6e (peak, bandwidth, HBM, links, chips
of a pod).
``usable_bytes`` is the HBM that libtpu 0.0.42 leaves to a program: the figure in its own out-of-memory message.
``clock`` is not published. It is what makes the compiler's cycle counts agree with the published peak: four 128 x 128
multiply-accumulate arrays per core of v5e and v5p (two cores), four times that per cycle on v6e.
"""

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """peak: dense bfloat16 FLOP/s; bandwidth: HBM bytes/s; hbm_gb, usable_bytes: HBM as sold, and as a program may use it;
    links: bytes/s between chips, both directions together; clock: cycles/s; pod: chips of the largest slice there is."""

    name: str
    peak: float
    bandwidth: float
    hbm_gb: int
    usable_bytes: int
    links: float
    clock: float
    pod: int

    def transfer(self, sent: float, mesh: tuple[int, int]) -> float:
        """Seconds that a chip needs at least to send so many bytes (`hlo.Traffic`) over all its links: as if all went to the
        shards of the smaller axis of the mesh that has any, since its own part each shard has."""
        shards = min((size for size in mesh if size > 1), default=1)
        return sent * (1 - 1 / shards) / (self.links / 2)

    @property
    def ridge(self) -> float:
        """FLOPs per byte of HBM traffic at which computing takes as long as reading."""
        return self.peak / self.bandwidth


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 819e9, 16, int(15.75 * GIB), 400e9, 1.5e9, 256),
        Chip("v5p", 459e12, 2765e9, 95, int(95.74 * GIB), 1200e9, 1.75e9, 8960),
        Chip("v6e", 918e12, 1638e9, 32, int(31.25 * GIB), 800e9, 1.75e9, 256),
    )
}
