"""How often to save: the interval that loses least time to saves and failures, by Young and Daly, and the goodput to expect."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FailureModel:
    """What was measured: the time that one save holds training up, the mean time between failures, and what a restart takes."""

    save_stall_seconds: float
    mean_seconds_between_failures: float
    restart_seconds: float

    @property
    def best_interval_seconds(self) -> float:
        """sqrt(2 * save stall * mean time between failures): J. W. Young, "A first order approximation to the optimum checkpoint
        interval", CACM 17 (1974)."""
        return math.sqrt(2 * self.save_stall_seconds * self.mean_seconds_between_failures)

    def useful_share(self, interval_seconds: float) -> float:
        """The share of wall time that is work kept, with a save after every `interval_seconds` of work.

        Failures come at random with a constant rate, also during saves and restarts: J. T. Daly, "A higher order estimate of
        the optimum checkpoint interval for restart dumps", FGCS 22 (2006), equation 20.
        """
        mean, interval = self.mean_seconds_between_failures, interval_seconds
        if not interval:
            return 0.0
        exponents = self.restart_seconds / mean, (interval + self.save_stall_seconds) / mean
        if max(exponents) > 500:  # no stretch between saves ever ends before the next failure
            return 0.0
        return interval / (mean * math.exp(exponents[0]) * math.expm1(exponents[1]))
