"""Time of a block's forward and backward pass with each kind of attention, by number of tokens: where the linear one begins to pay.

    PYTHONPATH=<this checkout> python -m benchmarks.attention --variant S/16 --tokens 196,784,3136

CPU time of one thread, so that other processes change little; the kinds alternate and the least of the rounds counts.
"""

import argparse
import math
import time

import torch
from torch import nn

from vitscale.models import ViTConfig
from vitscale.nn.context import BlockContext
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid

KINDS = ("softmax", "cross_covariance")


def main() -> None:
    """Print one line for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--tokens", default="196,784,3136", help="squares, one after the other")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("tokens  softmax s  cross_covariance s  ratio")
    for num_tokens in map(int, args.tokens.split(",")):
        softmax, linear = measure(args.variant, num_tokens=num_tokens, rounds=args.rounds)
        print(f"{num_tokens:6d}  {softmax:9.4f}  {linear:18.4f}  {softmax / linear:5.2f}")


def measure(variant: str, *, num_tokens: int, rounds: int) -> list[float]:
    """Least seconds of each kind."""
    side = math.isqrt(num_tokens)
    assert side**2 == num_tokens, f"{num_tokens} is no square"
    config = ViTConfig(variant=variant, depth=1, image_size=16 * side, pooling="mean")
    blocks = [materialise(config.model_copy(update={"attention": kind}).build().blocks[0], seed=0) for kind in KINDS]
    x_BND = torch.randn(1, num_tokens, config.shape.width, requires_grad=True)
    context = BlockContext(grid=Grid(side, side), num_prefix=0)
    return [min(times) for times in zip(*([seconds(block, x_BND, context) for block in blocks] for _ in range(rounds)), strict=True)]


def seconds(block: nn.Module, x_BND: torch.Tensor, context: BlockContext) -> float:
    """CPU time of one forward and backward pass."""
    start = time.process_time()
    block(x_BND, context=context).sum().backward()
    return time.process_time() - start


if __name__ == "__main__":
    main()
