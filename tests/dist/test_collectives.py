"""The host collectives, alone and among three gloo processes, which run this file as a script."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.launcher import run_ranks
from vitscale.dist import collectives
from vitscale.dist.ranks import current_ranks

LONG = "é" * 5000


def test_alone_every_collective_returns_its_input() -> None:
    assert not collectives.is_distributed()
    assert collectives.broadcast_json({"a": 1}) == {"a": 1}
    assert collectives.gather_json({"a": 1}) == [{"a": 1}]
    values = torch.tensor([1.0, 2.0])
    assert collectives.all_reduce_sum(values) is values
    assert values.tolist() == [1.0, 2.0]


@pytest.mark.dist
def test_three_ranks() -> None:
    results = run_ranks(Path(__file__), num_ranks=3)
    assert [result.pop("ranks") for result in results] == [[rank, 3, rank] for rank in range(3)]
    expected = {
        "is_distributed": True,
        "from_0": {"rank": 0, "text": LONG},
        "from_2": {"rank": 2, "text": LONG},
        "gathered": [None, ["x", 1.5], {"text": LONG * 2}],
        "sum": [3, 30],
    }
    assert results == [expected] * 3


def main() -> dict[str, Any]:
    dist.init_process_group("gloo")
    ranks = current_ranks()
    rank = ranks.rank
    result = {
        "ranks": [ranks.rank, ranks.world_size, ranks.local_rank],
        "is_distributed": collectives.is_distributed(),
        "from_0": collectives.broadcast_json({"rank": rank, "text": LONG}),
        "from_2": collectives.broadcast_json({"rank": rank, "text": LONG}, source=2),
        "gathered": collectives.gather_json([None, ["x", 1.5], {"text": LONG * rank}][rank]),
        "sum": collectives.all_reduce_sum(torch.tensor([rank, 10 * rank])).tolist(),
    }
    dist.destroy_process_group()
    return result


if __name__ == "__main__":
    print(json.dumps(main()))
