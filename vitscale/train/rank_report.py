"""What each rank alone knows of the steps since the last report, shared with all of them in one collective."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitscale.dist.collectives import gather_json


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """Of one rank: the samples it has lost (`LossLedger.take_unshared`), the counters of its storages, and the seconds of its own
    work, None where they are not known. Plain JSON."""

    lost: list[dict[str, Any]]
    io: dict[str, int]
    own_seconds: float | None


def share(mine: RankReport) -> list[RankReport]:
    """The reports of all ranks, in their order, on every rank. Collective."""
    return [RankReport(**values) for values in gather_json(asdict(mine))]


def total_io(reports: Sequence[RankReport]) -> dict[str, int]:
    """The counters of all ranks' storages, added up."""
    totals = Counter[str]()
    for report in reports:
        totals.update(report.io)
    return dict(totals)
