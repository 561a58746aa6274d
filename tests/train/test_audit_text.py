"""The audit as text: a row per thing compared and a verdict that claims no more than was proved."""

import dataclasses

import pytest

from vitscale.train.audit import AuditReport, DataSetComparison, LossComparison
from vitscale.train.audit_samples import SampleComparison
from vitscale.train.audit_text import describe_audit
from vitscale.train.audit_weights import CheckpointComparison, TensorDifference

EQUAL_WEIGHTS = CheckpointComparison(step=4, num_tensors=120, num_bytes=3 * 2**20, different=(), state={})
OTHER_TENSORS = tuple(TensorDifference(name=f"block.{n}", kind="weight", num_different=n + 1, max_delta=n * 1e-6) for n in range(30))
OTHER_WEIGHTS = dataclasses.replace(EQUAL_WEIGHTS, step=6, different=OTHER_TENSORS, state={"cursor.lanes": (4, 8)})
EQUAL = AuditReport(
    run_a="runs/a",
    run_b="runs/b",
    samples=SampleComparison(verdict="equal", num_steps=6, num_samples=96, first_step=1, last_step=6, notes=("A goes on",)),
    data_set=DataSetComparison(is_equal=True, different={}, order={}),
    checkpoints=(EQUAL_WEIGHTS,),
    checkpoint_steps=([2, 4], [4]),
    losses=LossComparison(num_steps=6),
    config={},
)
DIFFERENT = SampleComparison(verdict="different", detail="step 1, position 0")
CASES = {
    "equal": ({}, "Verdict: the runs saw the same samples in the same order and hold the same weights."),
    "samples only": ({"checkpoints": None}, "Verdict: the runs saw the same samples in the same order."),
    "other weights": ({"checkpoints": (EQUAL_WEIGHTS, OTHER_WEIGHTS)}, "in the same order; their weights differ."),
    "no weights": ({"checkpoints": ()}, "in the same order; their weights could not be compared."),
    "other samples": ({"samples": DIFFERENT}, "Verdict: the runs did not see the same samples in the same order."),
    "no log": ({"samples": SampleComparison(verdict="incomplete", detail="no log")}, "in the same order is not proved."),
    "other data": (
        {"data_set": DataSetComparison(is_equal=False, different={"sha256": ("1", "2")}, order={})},
        "did not see the same samples in the same order.",
    ),
}


@pytest.mark.parametrize(("changes", "verdict"), CASES.values(), ids=CASES)
def test_the_verdict_claims_what_was_proved(changes: dict[str, object], verdict: str) -> None:
    text = describe_audit(dataclasses.replace(EQUAL, **changes))  # type: ignore[arg-type]
    assert text.splitlines()[-1].endswith(verdict)


def test_a_row_for_each_thing_compared() -> None:
    rows = describe_audit(EQUAL).splitlines()
    assert rows[:2] == ["A  runs/a", "B  runs/b"]
    assert "96 samples of steps 1 to 6 are the same, in the same order; A goes on" in rows[3]
    assert "bit for bit at step 4: 120 tensors, 3.0 MiB each" in rows[5]
    assert [row.split()[0] for row in rows[3:8]] == ["samples", "data", "weights", "losses", "configuration"]


def test_tensors_that_differ_most_come_first_and_the_rest_is_counted() -> None:
    text = describe_audit(dataclasses.replace(EQUAL, checkpoints=(EQUAL_WEIGHTS, OTHER_WEIGHTS)))
    assert "they differ at step 6; they are equal bit for bit at step 4" in text
    assert text.index("block.29 ") < text.index("block.28 ") < text.index("and 10 more; --json lists all")
    assert "2.900e-05            30  block.29 (weight)" in text
    assert "host state: cursor.lanes 4 in A, 8 in B" in text


def test_differences_that_decide_nothing_are_shown() -> None:
    losses = LossComparison(num_steps=6, first_different_step=3, values=(1.5, 1.5000001))
    text = describe_audit(dataclasses.replace(EQUAL, losses=losses, config={"data.num_workers": (0, 2)}))
    assert "first at step 3: 1.5 in A, 1.5000001 in B" in text
    assert "data.num_workers 0 in A, 2 in B" in text
    assert text.splitlines()[-1].endswith("hold the same weights.")
