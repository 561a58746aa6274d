"""What the engine, and the engine with the training loop, cost over the bare torch step, in turn, in one process.

    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py --stages 0 1 2 3
    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py --stages 1 --trainer

The bare step is forward, backward and fused AdamW, with clipping if `--clip` is given, on one batch that stays the same; so do
the engines. The trainer is `train_loop` at ZeRO-1 with everything that goes with it: loader process, logging every 10 steps,
TensorBoard, and a checkpoint at the end of its turn. Each round gives every arm a turn of `--steps` steps, every other round
in reverse; the ratio is the median over the rounds of an arm's time to the bare step's in that round.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vitscale.config import decode
from vitscale.data.types import Batch
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.engine.processes import shutdown
from vitscale.models import ViTConfig
from vitscale.nn.init import initial_value
from vitscale.objectives.supervised import Supervised, SupervisedConfig
from vitscale.optim.groups import parameter_groups
from vitscale.run_config import RunConfig, ZeroStage
from vitscale.train.build import open_run
from vitscale.train.loop import train_loop
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.pack import PackRequest, pack

LR = 1e-4


def main() -> None:
    args = _parse()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (args.batch, 1, 28, 28), dtype=torch.uint8, generator=generator)
    batch = {"image": image, "label": torch.randint(0, 10, (args.batch,), generator=generator)}
    engines = {f"zero-{stage}": _engine(args, stage=stage) for stage in args.stages}
    arms = {"bare": _bare(args, batch)} | {name: _stepper(engine, batch) for name, engine in engines.items()}
    turns = {name: _turn(step, num_steps=args.steps) for name, step in arms.items()}
    with contextlib.ExitStack() as stack:
        if args.trainer:
            turns["trainer"] = _trainer(args, stack=stack)
        for turn in turns.values():
            turn()
        _report(_measure(turns, rounds=args.rounds), args)
        for engine in engines.values():
            engine.close()
    shutdown()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trainer", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip", type=float, default=None)
    parser.add_argument("--ema", type=float, default=None)
    return parser.parse_args()


def _objective(args: argparse.Namespace) -> Supervised:
    model = ViTConfig(image_size=28, num_channels=1, patch_size=args.patch, width=args.width, depth=args.depth, num_heads=4)
    return SupervisedConfig(num_classes=10).build(model.build())


def _engine(args: argparse.Namespace, *, stage: ZeroStage) -> Engine:
    with torch.device("meta"):
        objective = _objective(args)
    config = EngineConfig(
        zero_stage=stage,
        precision="fp32",
        device="cpu",
        micro_batch=args.batch,
        weight_decay=0.05,
        clip_grad_norm=args.clip,
        ema_decay=args.ema,
    )
    return build_engine(
        objective,
        config=config,
        seed=0,
        initial=lambda name, parameter, shape: initial_value(parameter, name=name, shape=shape, seed=0),
    )


def _stepper(engine: Engine, batch: Batch) -> Callable[[int], object]:
    return lambda step: engine.train_step([batch], step=step, lr=LR)


def _bare(args: argparse.Namespace, batch: Batch) -> Callable[[int], None]:
    objective = _objective(args)
    parameters = dict(objective.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(initial_value(parameter, name=name, shape=parameter.shape, seed=0))
    groups = [
        {"params": [parameters[name] for name in group.names], "weight_decay": group.weight_decay}
        for group in parameter_groups([(name, tuple(p.shape)) for name, p in parameters.items()], weight_decay=0.05)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)

    def step(number: int) -> None:
        objective(batch, number).loss.backward()
        if args.clip is not None:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _turn(step: Callable[[int], object], *, num_steps: int) -> Callable[[], None]:
    numbers = itertools.count()

    def turn() -> None:
        for _ in range(num_steps):
            step(next(numbers))

    return turn


def _trainer(args: argparse.Namespace, *, stack: contextlib.ExitStack) -> Callable[[], None]:
    """A whole run on the sample of Fashion-MNIST that comes with the package, advanced by `--steps` steps per turn."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    pack(PackRequest(source="fashion-mnist", input=SAMPLE_FOLDER, output=folder / "shards"))
    model = {"kind": "vit", "image_size": 28, "num_channels": 1, "num_heads": 4}
    values = {
        "name": "overhead",
        "output": str(folder),
        "model": model | {"patch_size": args.patch, "width": args.width, "depth": args.depth},
        "objective": {"kind": "supervised", "num_classes": 10},
        "data": {"kind": "shards", "path": str(folder / "shards" / "train")},
        "optim": {"lr": LR, "weight_decay": 0.05, "clip_grad_norm": args.clip, "ema_decay": args.ema},
        "train": {"num_samples": args.batch * 10**6, "global_batch": args.batch},
        "parallel": {"device": "cpu", "zero_stage": 1, "micro_batch": args.batch},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        run = stack.enter_context(open_run(decode(RunConfig, values=values, source="benchmark")))
    state = run.start

    def turn() -> None:
        nonlocal state
        train = run.config.train.model_copy(update={"num_samples": state.samples + args.steps * args.batch})
        part = replace(run, start=state, config=run.config.model_copy(update={"train": train}))
        with contextlib.redirect_stdout(io.StringIO()):
            state = train_loop(part)

    return turn


def _measure(turns: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of every arm and round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for number in range(rounds):
        order = list(turns) if number % 2 == 0 else list(turns)[::-1]
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            turns[name]()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


def _report(seconds: dict[str, list[tuple[float, float]]], args: argparse.Namespace) -> None:
    model = f"ViT width {args.width} depth {args.depth} patch {args.patch} at 28 px"
    print(f"{model}, batch {args.batch}, {args.rounds} rounds of {args.steps} steps")
    for name, times in seconds.items():
        pairs = list(zip(times, seconds["bare"], strict=True))
        wall = statistics.median(mine[0] / bare[0] for mine, bare in pairs)
        cpu = statistics.median(mine[1] / bare[1] for mine, bare in pairs)
        milliseconds = 1e3 * statistics.median(mine[0] for mine in times) / args.steps
        print(f"{name:8s} {milliseconds:8.1f} ms a step   wall x{wall:.3f}   cpu x{cpu:.3f}")


if __name__ == "__main__":
    main()
