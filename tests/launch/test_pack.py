"""Packing over a cluster: nodes that cannot do their share are refused, and one that can writes the same bytes."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.data_tools.images import write_image_folder
from vitscale.config import DataError
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.images import ImagePolicy, Transcode, encoder_name
from vitscale_data_tools.pack import pack
from vitscale_data_tools.plan import PackPlan, PackRequest, plan_pack
from vitscale_launch.cli import app
from vitscale_launch.pack import NodeView, check_views, pack_on_cluster

FINE = NodeView(node="a", sees_output=True, sees_input=True, encoder=encoder_name())


def plan_of(output: Path, **changes: Any) -> PackPlan:
    return plan_pack(PackRequest(**{"source": "fashion-mnist", "input": SAMPLE_FOLDER, "output": output, **changes}))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sees_output": False}, r"/out: not on storage that all nodes of the cluster share: b cannot see it\. Give folders"),
        ({"sees_input": False}, r"sample: not on storage that all nodes of the cluster share: b cannot see it"),
        ({"encoder": "simplejpeg 1.0"}, r"b has simplejpeg 1\.0, and this machine simplejpeg .*would differ"),
    ],
)
def test_a_node_that_cannot_do_its_share(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plan = plan_of(tmp_path / "out", policy=ImagePolicy(transcode=Transcode()))
    check_views([FINE, FINE], plan=plan)
    with pytest.raises(DataError, match=message):
        check_views([FINE, replace(FINE, node="b", **changes)], plan=plan)


def test_without_transcoding_versions_do_not_matter(tmp_path: Path) -> None:
    check_views([FINE, replace(FINE, encoder="simplejpeg 1.0")], plan=plan_of(tmp_path / "out"))


def test_a_dry_run_starts_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale_launch.pack.ray_cluster", None)
    result = CliRunner().invoke(app, ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/out/train: 800 samples of 10 classes in 1 shards" in result.stdout


@pytest.mark.ray
def test_the_bytes_are_those_of_one_process(tmp_path: Path) -> None:
    """Also after an interruption, and with images that are skipped on the way."""
    write_image_folder(tmp_path / "in")
    (tmp_path / "in" / "ant" / "bad.jpg").write_bytes(b"no image")
    settings: dict[str, Any] = {
        "source": "image-folder",
        "input": tmp_path / "in",
        "samples_per_shard": 2,
        "unusable": "skip",
        "policy": ImagePolicy(transcode=Transcode(max_short_side=16)),
    }
    pack(PackRequest(output=tmp_path / "alone", **settings))

    def interrupt(done: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(PackRequest(output=tmp_path / "out", **settings), report=interrupt)
    told: list[int] = []
    summary = pack_on_cluster(plan_of(tmp_path / "out", **settings), address=None, workers=2, report=told.append)
    assert summary.num_resumed_shards == 2
    assert told[-1] == 7
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")
