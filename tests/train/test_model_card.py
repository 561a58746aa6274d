"""The card says what the weights are, from what, how good and at what cost, and leaves out what is not known."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitscale.train.equality import Comparison
from vitscale.train.model_card import model_card

COMPARED = (Comparison(against="timm", max_abs_delta=1e-7, max_abs_output=3.0),)


def card(path: Path, **state: Any) -> str:
    manifest = SimpleNamespace(step=20, world_size=4)
    reader: Any = SimpleNamespace(path=path, manifest=manifest, state=state, config_text="name: base\nseed: 3\n")
    return model_card(reader, kind="ema", layout="timm", comparisons=COMPARED)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "base"
    (root / "checkpoints").mkdir(parents=True)
    records = [
        {"step": 10, "loss": 2.0, "lr": 1e-3},
        {"step": 20, "eval/test/top1": 0.75},
        {"step": 30, "loss": 1.0, "eval/test/top1": 0.9},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3')
    return root


def test_it_has_the_data_and_the_figures_of_the_step(run: Path) -> None:
    text = card(run / "checkpoints" / "step-00000020", samples=12345, cursor={"manifest_sha256": "ab12", "order": {}})
    assert text.startswith("# base\n\nA vision transformer, the moving average of the weights after step 20")
    assert "- shards: manifest sha256 ab12" in text
    assert "- samples seen: 12,345" in text
    assert "- loss: 2 (step 10)" in text
    assert "- eval/test/top1: 0.75 (step 20)" in text
    assert "step 30" not in text, "measured after these weights"
    assert "against timm: max |delta logits| = 1e-07" in text
    assert "name: base\nseed: 3\n```" in text


def test_every_set_of_a_mixture_is_named(run: Path) -> None:
    mixture = [{"name": "a", "manifest_sha256": "1"}, {"name": "b", "manifest_sha256": "2"}]
    text = card(run / "checkpoints" / "step-00000020", cursor={"mixture": mixture})
    assert "- a: manifest sha256 1\n- b: manifest sha256 2" in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    text = card(tmp_path / "copy", imported={"source": "B_16.npz", "sha256": {"B_16.npz": "cd34"}})
    assert "- imported from B_16.npz, sha256 cd34" in text
    assert "## Figures" not in text
    assert "## Cost" not in text
