"""What calls of the decoding program take, learnt from the calls: a round of each way to draft, and a call besides its rounds.

    seconds of a call = besides + rounds * round of its way, more or less

Besides its rounds a call takes what starting it does, and what shares its cores: clients that read what the last one brought. A
time per round, of a short call, would hold both, and most in the way that is seldom taken. So a Kalman filter (Kalman 1960) keeps
the two apart. It knows how sure each time is, which fades as calls of other ways go by; and that what slows one way mostly slows
all of them.
"""

from collections.abc import Sequence

import numpy as np

NOISE = 0.15  # standard deviation of a call's seconds, as a share
FIRST_DOUBT = 0.3  # of a time that was measured beforehand, perhaps beside other work that was starting; none counts for more later
DRIFT_ROUNDS = 2048.0  # after which times may have changed by the two below
COMMON_DRIFT = 0.3  # share by which all of them may have changed together
OWN_DRIFT = 0.15  # and each by itself
MOST_DEVIATIONS = 2.0  # that one call counts for: what stops the machine for a moment says nothing of a round


class RoundTimes:
    """Of programs of one number of rows. rounds: seconds of a round by the number of the way; call: of a call besides."""

    def __init__(self, rounds: Sequence[float], call: float):
        self._known = np.array([call, *rounds], float)
        self._covariance = np.diag(self._scale() * np.array([1.0] + [FIRST_DOUBT] * len(rounds))) ** 2

    @property
    def rounds(self) -> list[float]:
        """Seconds of a round in each way."""
        return self._known[1:].tolist()

    @property
    def call(self) -> float:
        """Seconds of a call besides its rounds."""
        return float(self._known[0])

    def _scale(self) -> np.ndarray:
        """A call besides its rounds may be nothing, and soon as much as a round."""
        return self._known + np.eye(len(self._known))[0] * self._known[1:].min()

    def doubt(self, way: int, other: int) -> float:
        """Standard deviation of how much faster a round of one way is than thought beside one of the other, as a share."""
        difference = np.zeros(len(self._known))
        difference[1 + way] += 1 / self._known[1 + way]
        difference[1 + other] -= 1 / self._known[1 + other]
        return min(FIRST_DOUBT, float(np.sqrt(max(0.0, difference @ self._covariance @ difference))))

    def saw(self, way: int, rounds: int, seconds: float) -> None:
        """A call of so many rounds took so long."""
        drift = np.diag((OWN_DRIFT * self._scale()) ** 2) + COMMON_DRIFT**2 * np.outer(self._known, self._known)
        covariance, takes = self._covariance + rounds / DRIFT_ROUNDS * drift, np.zeros(len(self._known))
        takes[0], takes[1 + way] = 1, rounds
        expected, shared = takes @ self._known, covariance @ takes
        variance = takes @ shared + (NOISE * expected) ** 2
        most = MOST_DEVIATIONS * np.sqrt(variance)
        known = self._known + shared / variance * np.clip(seconds - expected, -most, most)
        self._known = np.maximum(known, [0.0, *(self._known[1:] / 2)])
        self._covariance = covariance - np.outer(shared, shared) / variance

    def settle(self) -> None:
        """Nothing more will be seen: what is known counts as sure."""
        self._covariance[:] = 0
