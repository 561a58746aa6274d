"""Silent corruption: exact digests of what several ranks hold alike, compared, and the rank that holds something else named.

What is compared: at ZeRO stage 0 everything (weights, moments, moving average), which every rank keeps. At stages 1 and 2 the
whole weights that each rank's forward reads, with each other and with the fp32 masters they are made of, whichever rank holds
these. At stage 3 the same for parameters that stay gathered; of the others each rank's slice with its own masters. Moments and
averages at stages 1 to 3 exist once and have nothing to be compared with, and a master that was wrong before its last step is
the truth for all ranks. From stage 1 on every step makes the weights anew from the masters, so a comparison sees what happened
to them since the last step; at stage 0 it sees what ever happened.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitscale.checkpoint.fragments import Kind
from vitscale.dist.collectives import gather_json
from vitscale.engine.internals import MasterShard

# Bounds the temporaries of a digest: 16 bytes per element.
_CHUNK_ELEMENTS = 1 << 20
_MODULUS = 1 << 64
_BITS = {2: torch.int16, 4: torch.int32}
_SHOWN_DIFFERENCES = 5

Key = tuple[str, Kind]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A tensor that is not alike everywhere.

    `ranks` hold a wrong copy of it (`copy`), or masters that differ from the slice of the weights made of them (`master`), or
    differ from each other with nothing to tell which of them is right (`unknown`).
    """

    name: str
    kind: Kind
    ranks: tuple[int, ...]
    what: Literal["copy", "master", "unknown"]

    def __str__(self) -> str:
        ranks = f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"
        told = {
            "copy": f"the copy on {ranks} is wrong",
            "master": f"on {ranks} the fp32 master weights and what was made of them differ",
            "unknown": f"{ranks} differ, and nothing tells which is right",
        }
        return f"{self.name} ({self.kind}): {told[self.what]}"


@dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """The outcome of a comparison, equal on all ranks."""

    num_tensors: int
    differences: tuple[Difference, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that a difference names."""
        return tuple(sorted({rank for difference in self.differences for rank in difference.ranks}))

    def __str__(self) -> str:
        if not self.differences:
            return f"all copies of {self.num_tensors} tensors are alike"
        more = len(self.differences) - _SHOWN_DIFFERENCES
        shown = "; ".join(str(difference) for difference in self.differences[:_SHOWN_DIFFERENCES])
        return shown + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, kw_only=True)
class Digests:
    """One tensor as one rank holds it: digests of its whole copy (None: it has none), of its part of the masters as forward
    would read them, and of its part of what forward reads. The parts of all ranks add up to the digest of the whole."""

    copy: int | None
    masters: int = 0
    parts: int = 0


def compare_replicated(tensors: Mapping[Key, Tensor]) -> ReplicaReport:
    """Compare tensors that every rank keeps whole. Collective; waits for the device."""
    digests = _fetch([digest(values) for values in tensors.values()])
    return _compare(list(tensors), [Digests(copy=value) for value in digests], have_masters=False)


def compare_with_masters(
    *, names: Sequence[str], copies: Mapping[str, Tensor], shards: Sequence[MasterShard], forward_shards: Sequence[Tensor]
) -> ReplicaReport:
    """Compare weights with each other and with their masters. Collective; waits for the device.

    `names` lists all parameters, `copies` the whole ones that this rank's forward reads, flat. `forward_shards` holds, laid out
    like `shards`, what was made of this rank's masters.
    """
    owners: list[str] = []
    of_masters: list[Tensor] = []
    of_parts: list[Tensor] = []
    for shard, forward in zip(shards, forward_shards, strict=True):
        for piece in shard.pieces:
            place = slice(piece.offset, piece.offset + piece.count)
            owners.append(piece.name)
            of_masters.append(digest(shard.values[place].to(forward.dtype), start=piece.start))
            of_parts.append(digest(forward[place], start=piece.start))
    masters, parts = _sums(owners, _fetch(of_masters)), _sums(owners, _fetch(of_parts))
    whole = dict(zip(copies, _fetch([digest(values) for values in copies.values()]), strict=True))
    mine = [Digests(copy=whole.get(name), masters=masters.get(name, 0), parts=parts.get(name, 0)) for name in names]
    return _compare([(name, "weight") for name in names], mine, have_masters=True)


def digest(values: Tensor, *, start: int = 0) -> Tensor:
    """The sum of `bits[i] * (2 (start + i) + 1)` modulo 2^64 over the bit patterns of flat `values`, an int64 scalar on their device.

    Sums of integers do not depend on their order, and digests of the pieces of a tensor, each with its `start`, add up to that of
    the whole. One changed element always changes it: an odd factor cannot make a difference of 32 bits vanish modulo 2^64.
    """
    bits = values.detach().view(_BITS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for low in range(0, bits.numel(), _CHUNK_ELEMENTS):
        part = bits[low : low + _CHUNK_ELEMENTS]
        first = 2 * (start + low) + 1
        factors = torch.arange(first, first + 2 * part.numel(), 2, dtype=torch.int64, device=values.device)
        total += factors.mul_(part).sum()
    return total


def flip_bit(values: Tensor, *, element: int = 0, bit: int = 3) -> None:
    """Flip one bit of one element of flat `values`, in place."""
    bits = values.detach().view(_BITS[values.element_size()])
    width = 8 * values.element_size()
    bits[element] ^= (1 << bit) - (1 << width if bit == width - 1 else 0)  # the sign bit alone is the smallest integer


def _fetch(digests: Sequence[Tensor]) -> list[int]:
    if not digests:
        return []
    values: list[int] = torch.stack(list(digests)).tolist()
    return [value % _MODULUS for value in values]


def _sums(names: Sequence[str], values: Sequence[int], /) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, value in zip(names, values, strict=True):
        sums[name] = (sums.get(name, 0) + value) % _MODULUS
    return sums


def _compare(keys: Sequence[Key], mine: Sequence[Digests], *, have_masters: bool) -> ReplicaReport:
    gathered = gather_json([[entry.copy, entry.masters, entry.parts] for entry in mine])
    differences = []
    for index, (name, kind) in enumerate(keys):
        by_rank = [Digests(copy=copy, masters=masters, parts=parts) for copy, masters, parts in (rows[index] for rows in gathered)]
        found = judge(by_rank, have_masters=have_masters)
        if found is not None:
            differences.append(Difference(name=name, kind=kind, ranks=found[1], what=found[0]))
    return ReplicaReport(num_tensors=len(keys), differences=tuple(differences))


def judge(by_rank: Sequence[Digests], *, have_masters: bool) -> tuple[Literal["copy", "master", "unknown"], tuple[int, ...]] | None:
    """What is wrong with one tensor, and on which ranks; None when all is well."""
    copies = {rank: entry.copy for rank, entry in enumerate(by_rank) if entry.copy is not None}
    if not have_masters:
        truth = _majority(list(copies.values()))
        wrong = tuple(rank for rank, copy in copies.items() if copy != truth)
        return ("unknown" if truth is None else "copy", wrong) if wrong else None
    truth = sum(entry.masters for entry in by_rank) % _MODULUS
    wrong = tuple(rank for rank, copy in copies.items() if copy != truth)
    if 0 < len(wrong) < len(copies):
        return "copy", wrong
    torn = tuple(rank for rank, entry in enumerate(by_rank) if entry.masters != entry.parts)
    if torn:
        return "master", torn
    return ("unknown", wrong) if wrong else None


def _majority(copies: Sequence[int]) -> int | None:
    """The value of more than half of them."""
    value, count = Counter(copies).most_common(1)[0]
    return value if 2 * count > len(copies) else None
