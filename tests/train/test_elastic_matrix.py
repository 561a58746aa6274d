"""A checkpoint of two ranks restores exactly at any number of ranks, ZeRO stage and precision, with and without offload."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import run_ranks

pytestmark = pytest.mark.timeout(900)

SCRIPT = Path(__file__).with_name("rank_matrix.py")
STAGES = [f"{stage} fp32" for stage in range(4)]
OFFLOADED = [f"{stage} fp32 offloaded" for stage in (1, 2, 3)]
IN_BF16 = ["1 bf16", "2 bf16 offloaded", "3 bf16"]
EVERYTHING = [*STAGES, *OFFLOADED, *IN_BF16]


def restored(folder: Path, *, sources: list[str], targets: dict[int, list[str]]) -> None:
    """Save `sources` at two ranks, restore each into `targets` at so many ranks, and compare."""
    saved = run_ranks(SCRIPT, folder, "save", json.dumps(sources))[0]
    for num_ranks, settings in targets.items():
        results = run_ranks(SCRIPT, folder, "restore", json.dumps(settings), num_ranks=num_ranks, timeout_s=600)[0]
        assert len(results) == len(sources) * len(settings)
        for case, result in results.items():
            source = case.split(" -> ")[0]
            _is_exact(result, case=f"{case} on {num_ranks} ranks")
            _goes_on_alike(saved[source], result, in_fp32="bf16" not in case, case=f"{case} on {num_ranks} ranks")


def _is_exact(result: dict[str, Any], *, case: str) -> None:
    before, after = result["equal"]
    assert before < 0.1, f"{case}: the negative control, another seed"
    assert after == 1.0, f"{case}: masters, moments and averages, bit for bit"
    assert result["steps"] == 3, case
    assert result["alarms"] == [], case


def _goes_on_alike(source: dict[str, Any], result: dict[str, Any], *, in_fp32: bool, case: str) -> None:
    if in_fp32:
        # Forward reads the restored weights and nothing older; every rank sees the whole batch, so its bits stay the same.
        for figure in ("scores", "averaged"):
            assert result[figure] == source[figure], (case, figure)
        assert result["losses"][0] == source["losses"][0], case
    # bf16 rounds to three digits, and to others in another number of ranks' mean gradient.
    assert result["losses"] == pytest.approx(source["losses"], abs=1e-6 if in_fp32 else 2e-2), case


@pytest.mark.chaos
@pytest.mark.parametrize("num_ranks", [1, 3, 4])
def test_every_pair_of_settings(tmp_path: Path, num_ranks: int) -> None:
    restored(tmp_path, sources=EVERYTHING, targets={num_ranks: EVERYTHING})
