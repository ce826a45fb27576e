"""Published figures of TPU chips, and what the TPU compiler assumes of them. Not here: any measurement.

Sources: the "System architecture" tables of cloud.google.com/tpu/docs for v5e, v5p and v6e (peak, bandwidth, HBM,
links, chips of a pod). ``usable_bytes`` is the HBM that libtpu 0.0.42 leaves to a program; its out-of-memory message
states it. ``clock`` is not published. It is derived: with it the compiler's cycle counts agree with the published peak,
for four 128 x 128 multiply-accumulate arrays per core of v5e and v5p (two cores), and four times as many operations per
cycle on v6e.
"""

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      peak: dense bfloat16 FLOP/s.
      bandwidth: HBM bytes/s.
      hbm_gb, usable_bytes: HBM as sold, and as a program may use it.
      links: bytes/s over all links to other chips, both directions together.
      clock: cycles/s.
      pod: chips of the largest slice.
    """

    name: str
    peak: float
    bandwidth: float
    hbm_gb: int
    usable_bytes: int
    links: float
    clock: float
    pod: int

    def transfer(self, sent: float, mesh: tuple[int, int]) -> float:
        """The least seconds in which a chip sends ``sent`` bytes (`program_text.Traffic`) over all its links. The bound
        counts all traffic on the smaller mesh axis above 1, where each of n shards has 1/n of the result already."""
        shards = min((size for size in mesh if size > 1), default=1)
        return sent * (1 - 1 / shards) / (self.links / 2)

    @property
    def ridge(self) -> float:
        """FLOPs per byte of HBM traffic at which computation takes as long as reading."""
        return self.peak / self.bandwidth


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 819e9, 16, int(15.75 * GIB), 400e9, 1.5e9, 256),
        Chip("v5p", 459e12, 2765e9, 95, int(95.74 * GIB), 1200e9, 1.75e9, 8960),
        Chip("v6e", 918e12, 1638e9, 32, int(31.25 * GIB), 800e9, 1.75e9, 256),
    )
}
