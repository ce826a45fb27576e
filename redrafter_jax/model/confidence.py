"""What a head's config says of its scores: for each depth the slope and the bias that make acceptance of them
(`decode/propose/confidence.py`)."""

import dataclasses
import math

MAX_DEPTHS = 64
MAX_NUMBER = 100.0


@dataclasses.dataclass(frozen=True)
class Confidence:
    """greedy, sampled: (slope, bias) of each depth from 1 on, for rows at T = 0 and for rows whose noise the head sees. Slopes are
    above 0.

    Raises:
      ValueError: there is no depth, or too many, or a number is out of range.
    """

    greedy: tuple[tuple[float, float], ...]
    sampled: tuple[tuple[float, float], ...]

    def __post_init__(self):
        for fit in (self.greedy, self.sampled):
            if not 1 <= len(fit) <= MAX_DEPTHS:
                raise ValueError(f"confidence should have 1 to {MAX_DEPTHS} depths, not {len(fit)}")
            for slope, bias in fit:
                if not 0 < slope <= MAX_NUMBER or not math.fabs(bias) <= MAX_NUMBER:
                    raise ValueError(
                        f"a confidence's slope should be above 0 and at most {MAX_NUMBER:g}, and its bias between that and its"
                        f" negative, not {slope} and {bias}"
                    )
