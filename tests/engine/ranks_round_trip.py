"""Restores the state of engine settings into one another on this rank and prints the results; run by test_shards.py."""

import json
from typing import Any

import torch

from tests.collector import skip_imports
from tests.engine.ranked import SETTINGS, Setting, State, build, gather, key, nothing_persistent, restore, take_step
from tests.engine.tiny import batch
from vitscale.engine.processes import init_process_group, shutdown

# Every setting is a source, a target and its own heir; every stage meets its neighbour and the two ends meet, in and across precisions.
PAIRS: list[tuple[Setting, Setting]] = [
    *((setting, setting) for setting in SETTINGS),
    *(((a, "fp32"), (b, "fp32")) for a, b in [(0, 3), (3, 0), (1, 3), (3, 1), (0, 1), (1, 2), (2, 3), (2, 0)]),
    *(((a, "bf16"), (b, "bf16")) for a, b in [(1, 3), (3, 1), (2, 1), (3, 2)]),
    *(((a, "fp32"), (b, "bf16")) for a, b in [(0, 3), (3, 1), (1, 1), (2, 2), (3, 3)]),
    *(((a, "bf16"), (b, "fp32")) for a, b in [(3, 0), (1, 3), (1, 1), (2, 2), (3, 3)]),
]


def main() -> None:
    torch.set_num_threads(1)
    init_process_group("cpu")
    skip_imports()
    report: dict[str, Any] = {"whole": _round_trips(PAIRS)}
    report["accumulated"] = _round_trips(_square((2, "bf16"), (3, "bf16")), accumulation=2)
    with nothing_persistent():
        report["sharded"] = _round_trips(_square((3, "fp32"), (3, "bf16")))
    shutdown()
    print(json.dumps(report))


def _square(*settings: Setting) -> list[tuple[Setting, Setting]]:
    return [(source, target) for source in settings for target in settings]


def _round_trips(pairs: list[tuple[Setting, Setting]], *, accumulation: int = 1) -> dict[str, Any]:
    """The first's state restored into the second, in an engine of another seed that was used before each time."""
    sources = {setting: _source(setting, accumulation) for setting in dict(pairs)}
    results = {}
    for target in sorted({target for _, target in pairs}):
        engine = build(target, seed=1, accumulation=accumulation)
        for source in [source for source, other in pairs if other == target]:
            state, steps, losses = sources[source]
            take_step(engine, 77, accumulation)
            engine.predict(batch(50))
            assert not any(torch.equal(value, state[name]) for name, value in gather(engine).items())
            restore(engine, state, steps)
            equal = all(torch.equal(value, state[name]) for name, value in gather(engine).items())
            continued = [take_step(engine, step, accumulation)[0] for step in (3, 4)]
            steps_taken = engine.store.optimizer_steps()
            results[f"{key(source)} -> {key(target)}"] = {"equal": equal, "losses": losses, "continued": continued, "steps": steps_taken}
        engine.close()
    return results


def _source(setting: Setting, accumulation: int) -> tuple[State, int, list[float]]:
    engine = build(setting, accumulation=accumulation)
    for step in range(3):
        take_step(engine, step, accumulation)
    state, steps = gather(engine), engine.store.optimizer_steps()
    losses = [take_step(engine, step, accumulation)[0] for step in (3, 4)]
    engine.close()
    return state, steps, losses


if __name__ == "__main__":
    main()
