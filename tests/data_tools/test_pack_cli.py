"""The options of packing: each reaches the request, by either of the two commands, and the summary tells what happened."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.data_tools.images import animated_webp, rotated_jpeg, write_image_folder
from vitscale.config import UsageError
from vitscale_data_tools.cli import app
from vitscale_data_tools.images import ImagePolicy, Transcode
from vitscale_data_tools.options import SourceOptions, UrlRoot
from vitscale_data_tools.pack_cli import make_request, with_pack_options
from vitscale_data_tools.plan import PackRequest

RUNNER = CliRunner()
DEFAULT = PackRequest(source="table", input=Path("in.csv"), output=Path("out"))


def request_of(arguments: str) -> PackRequest:
    """What a command with the options of packing, and one of its own, is given."""
    made: list[PackRequest] = []
    command = typer.Typer()

    @command.command()
    @with_pack_options
    def own(request_values: Mapping[str, Any], address: str = "none") -> None:
        assert address == "here"
        made.append(make_request(request_values))

    result = RUNNER.invoke(command, [*arguments.split(), "--address", "here"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return made[0]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("", {}),
        ("--split val --exclude r.txt", {"split": "val", "exclude": Path("r.txt")}),
        ("--val-fraction 0.25", {"val_fraction": 0.25}),
        ("--val-per-class 50 --skip-unusable", {"val_per_class": 50, "unusable": "skip"}),
        ("--check header", {"policy": ImagePolicy(check="header")}),
        ("--transcode jpeg", {"policy": ImagePolicy(transcode=Transcode(quality=90))}),
        (
            "--transcode jpeg --quality 75 --max-short-side 256 --max-side 512",
            {"policy": ImagePolicy(transcode=Transcode(quality=75, max_short_side=256, max_side=512))},
        ),
        ("--classes c.txt --skip-unknown", {"classes": Path("c.txt"), "unknown_classes": "skip"}),
        ("--samples-per-shard 7 --seed 3", {"samples_per_shard": 7, "seed": 3}),
        ("--shard-mebibytes 9 --order source", {"shard_mebibytes": 9, "order": "source"}),
        (
            "--image-column a --label-column b --labels-column c --caption-column d --image-root r",
            {
                "source_options": SourceOptions(
                    image_column="a", label_column="b", labels_column="c", caption_column="d", image_root=Path("r")
                )
            },
        ),
        (
            "--url-root s3://x/=/m --url-root gs://y/=/n",
            {
                "source_options": SourceOptions(
                    url_roots=(UrlRoot(prefix="s3://x/", folder=Path("/m")), UrlRoot(prefix="gs://y/", folder=Path("/n")))
                )
            },
        ),
    ],
)
def test_every_option_reaches_the_request(options: str, changes: dict[str, Any]) -> None:
    assert request_of(f"table in.csv out {options}") == replace(DEFAULT, **changes)


def test_options_without_effect_are_refused() -> None:
    for options in ("--seed 1 --order source", "--quality 80", "--max-short-side 8", "--max-side 8", "--transcode jpeg --check decode"):
        with pytest.raises(UsageError, match="no effect"):
            request_of(f"idx in out {options}")


def test_the_summary_names_what_is_odd_and_what_was_skipped(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    (tmp_path / "in" / "cat" / "turned.jpg").write_bytes(rotated_jpeg(3, orientation=8))
    (tmp_path / "in" / "cat" / "moves.webp").write_bytes(animated_webp())
    (tmp_path / "in" / "cat" / "bad.webp").write_bytes(b"")
    result = RUNNER.invoke(app, ["pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "out"), "--skip-unusable"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:5] == [
        f"{tmp_path}/out: 8 samples of 3 classes in 1 shards, 0.8 MiB",
        f"  skipped 1 that cannot be packed: {tmp_path}/out/skipped.txt lists them",
        "  1 images have an EXIF orientation, which training does not apply: --transcode jpeg turns them upright",
        "  1 images are animated: their first frame counts",
        "  1 images are of another format than their names say, and are named rightly now",
    ]
    assert (tmp_path / "out" / "skipped.txt").read_text() == "cat/bad.webp\tthe file is empty\n"
    result = RUNNER.invoke(
        app, ["pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "b"), "--skip-unusable", "--transcode", "jpeg"]
    )
    assert result.stdout.splitlines()[2:4] == ["  1 images were turned upright", "  1 images are animated: their first frame was packed"]


def test_a_dry_run_says_that_sizes_are_those_before_transcoding(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    result = RUNNER.invoke(app, ["pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run", "--transcode", "jpeg"])
    assert f"{tmp_path}/out: 6 samples of 3 classes in 1 shards, 0.8 MiB before transcoding" in result.stdout
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_where_it_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "out.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("vitscale_data_tools.pack.write_pack", interrupted)
    write_image_folder(tmp_path / "in")
    result = RUNNER.invoke(app, ["pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "out")])
    assert result.exit_code == 130
    assert f"the shards that are whole are kept in {tmp_path}/out.partial: the same command goes on from them" in result.stderr
