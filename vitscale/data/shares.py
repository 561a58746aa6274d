"""The weights of a mixture as whole numbers of slots in a cycle, so that its proportions are exact and not only expected."""

import math
from collections.abc import Mapping

MOST_SLOTS = 1000
_FEWEST_SLOTS = 100
_TOLERANCE = 1e-9


def cycle_slots(weights: Mapping[str, float]) -> dict[str, int]:
    """How many slots of the cycle each set has; `weights` are positive and need not add up to 1.

    The cycle is the shortest of at most 1000 slots that holds every share exactly, repeated to 100 slots or more, since a
    cycle of a few would make the neighbours in a batch predictable; where there is none, it has 1000 slots and the shares are
    rounded by largest remainder. Raises `ValueError` naming a set whose share is less than one slot.
    """
    total = math.fsum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    for length in range(len(shares), MOST_SLOTS + 1):
        slots = {name: round(share * length) for name, share in shares.items()}
        if all(slots[name] and abs(share * length - slots[name]) < _TOLERANCE for name, share in shares.items()):
            times = -(-_FEWEST_SLOTS // length)
            return {name: count * times for name, count in slots.items()}
    return _rounded(shares)


def _rounded(shares: Mapping[str, float]) -> dict[str, int]:
    """A thousand slots by largest remainder; of equal remainders the earlier set's counts as larger."""
    slots = {name: math.floor(share * MOST_SLOTS) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: slots[name] - shares[name] * MOST_SLOTS)
    for name in by_remainder[: MOST_SLOTS - sum(slots.values())]:
        slots[name] += 1
    for name, count in slots.items():
        if count == 0:
            raise ValueError(
                f"{name}: its share of {shares[name]:.2g} is less than 1/{MOST_SLOTS}, so it would never be drawn; raise its weight"
            )
    return slots
