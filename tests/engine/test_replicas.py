"""Digests find every changed element; a flipped bit is found at the next comparison and named, and nothing else ever is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.tiny import batch, micro_batches, tiny_engine
from tests.launcher import run_ranks
from vitscale.engine import replicas
from vitscale.engine.replicas import Difference, Digests, ReplicaReport, digest, flip_bit, judge

LARGEST = "backbone.blocks.0.qkv.weight"


def by_definition(values: torch.Tensor, start: int) -> int:
    bits = values.view(torch.int32 if values.element_size() == 4 else torch.int16).tolist()
    return sum(bit * (2 * (start + i) + 1) for i, bit in enumerate(bits)) % 2**64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_digest_is_what_it_says(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_CHUNK_ELEMENTS", chunk)
    values = torch.randn(10).to(dtype)
    values[3], values[4], values[5] = torch.nan, torch.inf, -0.0
    whole = digest(values)
    assert whole.dtype == torch.int64
    assert whole.item() % 2**64 == by_definition(values, 0)
    pieces = [digest(values[:4]), digest(values[4:5], start=4), digest(values[5:], start=5)]
    assert sum(piece.item() for piece in pieces) % 2**64 == whole.item() % 2**64


@given(element=st.integers(0, 9_999), bit=st.integers(0, 31))
def test_one_flipped_bit_always_shows(element: int, bit: int) -> None:
    values = torch.arange(10_000, dtype=torch.float32)
    before = digest(values).item()
    flip_bit(values, element=element, bit=bit)
    assert digest(values).item() != before


def test_exchanged_elements_show() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert digest(values).item() != digest(values.flip(0)).item()


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        ([5], None),
        ([5, 5], None),
        ([5, 6], ("unknown", (0, 1))),
        ([5, 6, 5], ("copy", (1,))),
        ([5, 6, 7], ("unknown", (0, 1, 2))),
        ([5, 6, 5, 6], ("unknown", (0, 1, 2, 3))),
        ([5, 6, 5, 7, 5], ("copy", (1, 3))),
    ],
)
def test_without_masters_the_majority_is_right(copies: list[int], expected: object) -> None:
    assert judge([Digests(copy=copy) for copy in copies], have_masters=False) == expected


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # copy, masters, parts of each rank: the masters add up to 7
        ([(7, 3, 3), (7, 4, 4)], None),
        ([(7, 3, 3), (9, 4, 4)], ("copy", (1,))),
        ([(9, 3, 5), (7, 4, 4)], ("copy", (0,))),
        ([(8, 3, 4), (8, 4, 4)], ("master", (0,))),
        ([(7, 3, 3), (7, 4, 5)], ("master", (1,))),
        ([(None, 3, 3), (None, 4, 4)], None),
        ([(None, 3, 3), (None, 4, 5)], ("master", (1,))),
        ([(8, 3, 3), (9, 4, 4)], ("unknown", (0, 1))),
        ([(1, 2**64 - 3, 2**64 - 3), (1, 4, 4)], None),
    ],
)
def test_with_masters_even_two_ranks_can_tell(ranks: list[tuple[int | None, int, int]], expected: object) -> None:
    assert judge([Digests(copy=copy, masters=masters, parts=parts) for copy, masters, parts in ranks], have_masters=True) == expected


def test_a_report_names_ranks_and_a_few_parameters() -> None:
    differences = tuple(Difference(name=f"w{i}", kind="weight", ranks=(i % 2,), what="copy") for i in range(7))
    report = ReplicaReport(num_tensors=9, differences=differences)
    assert report.ranks == (0, 1)
    assert str(report).startswith("w0 (weight): the copy on rank 0 is wrong; w1")
    assert str(report).endswith("; and 2 more")
    assert str(ReplicaReport(num_tensors=9, differences=())) == "all copies of 9 tensors are alike"


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")])
def test_one_rank_compares_weights_with_masters(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, ema_decay=0.5)
    assert not engine.compare_replicas().differences
    engine.train_step(micro_batches(0), step=0, lr=1e-2)
    engine.predict(batch(0))
    assert not engine.compare_replicas().differences
    assert engine.flip_weight_bit() == LARGEST
    found = engine.compare_replicas().differences
    expected = () if stage == 0 else (Difference(name=LARGEST, kind="weight", ranks=(0,), what="master"),)
    assert found == expected, "a single rank at stage 0 has nothing to compare with"
    engine.close()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> tuple[int, dict[str, Any]]:
    reports = run_ranks(Path(__file__).with_name("ranks_replicas.py"), num_ranks=request.param)
    assert all(report == reports[0] for report in reports), "every rank hears the same"
    return request.param, reports[0]


def gathered(ranks: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    """The settings in which every rank holds whole weights between two steps: all of them but one."""
    world, report = ranks
    assert len(report) == {2: 9, 3: 5}[world]
    return {name: result for name, result in report.items() if name != "3 bf16 sharded"}


@pytest.mark.dist
def test_training_raises_no_false_alarm_and_is_not_disturbed(ranks: tuple[int, dict[str, Any]]) -> None:
    for name, result in gathered(ranks).items():
        assert result["alarms"] == 0, name
        assert result["same"], name
        assert result["compared"] == (56 if name.startswith("0") else 14), name


@pytest.mark.dist
def test_a_flipped_bit_of_a_slice_is_found_and_named(ranks: tuple[int, dict[str, Any]]) -> None:
    result = ranks[1]["3 bf16 sharded"]
    assert result["quiet"]["found"] == result["a step later"]["found"] == []
    ((_, kind, what, named),) = result["slice"]["found"]
    assert (kind, what, named) == ("weight", "master", [1])


@pytest.mark.dist
def test_a_flipped_bit_of_a_copy_is_found_and_named(ranks: tuple[int, dict[str, Any]]) -> None:
    world, _ = ranks
    for name, result in gathered(ranks).items():
        what, named = ("unknown", [0, 1]) if name == "0 fp32" and world == 2 else ("copy", [1])
        assert result["copy"]["found"] == [[LARGEST, "weight", what, named]], name
        later = result["a step later"]["found"]
        if name == "0 fp32":
            assert [LARGEST, "weight", what, named] in later, "it stays until the run is restarted"
            # The gradients of all ranks are one, so the moments stay alike; the average follows the weights.
            assert {kind for _, kind, _, _ in later} == {"weight", "ema"}
        else:
            assert later == [], "a step makes the weights anew from the masters"


@pytest.mark.dist
def test_a_flipped_bit_of_a_master_or_a_moment_is_found_and_named(ranks: tuple[int, dict[str, Any]]) -> None:
    world, report = ranks
    for name, result in report.items():
        moment = {"moment": world - 1} if name.startswith("0") else {}  # ranks hold whole moments at stage 0 only
        for flipped, rank in ({"master": 1 if "sharded" in name else 0} | moment).items():
            parameter, kind = result[flipped]["expected"]
            if name == "0 fp32":
                # The weights themselves; a majority takes three.
                what, named = ("copy", [rank]) if world > 2 else ("unknown", [0, 1])
                assert [parameter, kind, what, named] in result[flipped]["found"], name
            else:
                assert result[flipped]["found"] == [[parameter, kind, "master", [rank]]], name
