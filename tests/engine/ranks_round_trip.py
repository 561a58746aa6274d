"""Restores the state of every engine setting into every other on this rank and prints the result; run by test_shards.py."""

import json
from typing import Any

import torch

from tests.engine.ranked import SETTINGS, Setting, State, build, gather, key, nothing_persistent, restore, take_step
from tests.engine.tiny import batch
from vitscale.engine.processes import init_process_group, shutdown


def main() -> None:
    torch.set_num_threads(1)
    init_process_group("cpu")
    report: dict[str, Any] = {"whole": _round_trips(SETTINGS)}
    report["accumulated"] = _round_trips([(2, "bf16"), (3, "bf16")], accumulation=2)
    with nothing_persistent():
        report["sharded"] = _round_trips([(3, "fp32"), (3, "bf16")])
    shutdown()
    print(json.dumps(report))


def _round_trips(settings: list[Setting], *, accumulation: int = 1) -> dict[str, Any]:
    """Every setting's state restored into every setting, in an engine of another seed that was used before each time."""
    sources = {setting: _source(setting, accumulation) for setting in settings}
    results = {}
    for target in settings:
        engine = build(target, seed=1, accumulation=accumulation)
        for source, (state, steps, losses) in sources.items():
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
