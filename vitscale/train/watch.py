"""What looks after the ranks of a run: their signs of life, a watchdog that ends a rank which shows none, and who is slow."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import Ranks
from vitscale.engine.collective_time import CollectiveTime
from vitscale.run_config import WatchConfig
from vitscale.train.goodput import HostSeconds
from vitscale.train.heartbeat import Heartbeat
from vitscale.train.run_dir import RunDirectory, writing
from vitscale.train.stragglers import StragglerWatch, own_seconds, straggler_message
from vitscale.train.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rank that is slow, or no longer: an event of the run."""

    kind: str
    rank: int
    ratio: float
    message: str


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One rank's part in looking after the run; `hosts` are the machines by rank."""

    heartbeat: Heartbeat
    collectives: CollectiveTime
    stragglers: StragglerWatch
    hosts: tuple[str, ...]
    device: str

    def beat(self, phase: str, step: int) -> None:
        """Show that this rank is about to do `phase` after `step` steps; see `Heartbeat.beat`."""
        self.heartbeat.beat(phase, step)

    def beat_again(self) -> None:
        """Show that this rank is still at what it was about to do, which takes long."""
        self.heartbeat.beat_again()

    def collective_seconds(self) -> float:
        """How long this process has waited for other ranks so far."""
        return self.collectives.seconds

    def own_seconds(self, host: HostSeconds, *, forward_seconds: float | None) -> float | None:
        """What of a window was this rank's own work, as far as that is known."""
        return own_seconds(host, device=self.device, forward_seconds=forward_seconds)

    def judge(self, own: Sequence[float | None]) -> list[Finding]:
        """Which ranks are slow from now on, or no longer, by every rank's own work in the last window. Equal on all ranks."""
        judgement = self.stragglers.judge(own)
        return [
            Finding(
                kind=kind,
                rank=straggler.rank,
                ratio=straggler.ratio,
                message=straggler_message(straggler, hosts=self.hosts, is_slow=kind == "straggler"),
            )
            for kind, found in (("straggler", judgement.slow), ("straggler_recovered", judgement.recovered))
            for straggler in found
        ]


@contextlib.contextmanager
def open_watch(config: WatchConfig, *, directory: RunDirectory, ranks: Ranks, device: str) -> Iterator[Watch]:
    """Watch over this rank until the context ends, with a watchdog unless `config.hang_seconds` is None. All ranks enter it at the
    same point.

    Raises `ConfigError` on all ranks where one cannot write to the run directory or start its watchdog.
    """
    with contextlib.ExitStack() as stack:
        heartbeat = Heartbeat()
        stack.callback(heartbeat.close)
        collectives = CollectiveTime(on_enter=heartbeat.enter_collective, on_leave=heartbeat.leave_collective)
        stack.callback(collectives.close)
        hosts = tuple(gather_json(os.uname().nodename))
        attempt = on_main(lambda: secrets.token_hex(4))

        def start(hang_seconds: float | Literal["auto"]) -> None:
            with writing(directory):
                watchdog = Watchdog(
                    heartbeat,
                    run_dir=directory.root,
                    rank=ranks.rank,
                    world_size=ranks.world_size,
                    attempt=attempt,
                    hang_seconds=hang_seconds,
                )
            stack.callback(watchdog.close)

        if (hang_seconds := config.hang_seconds) is not None:
            jointly(lambda: start(hang_seconds))
        yield Watch(
            heartbeat=heartbeat,
            collectives=collectives,
            stragglers=StragglerWatch(factor=config.straggler_factor),
            hosts=hosts,
            device=device,
        )
