"""From pictures to the removal list: copies of every kind are found, within a set and of an evaluation set, and nothing else."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.data.packed import pack
from tests.data_tools.foreign import write_tar
from tests.data_tools.test_fingerprints import png
from tests.data_tools.test_perceptual_hash import picture
from vitscale.config import DataError, UsageError
from vitscale.data.dataset import open_dataset
from vitscale_data_tools import dedup as module
from vitscale_data_tools.dedup import DedupRequest, dedup
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.samples import parts
from vitscale_data_tools.selection import read_removals


def jpeg(pixels: np.ndarray, *, quality: int = 60) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.fixture
def request_(tmp_path: Path) -> DedupRequest:
    """0 to 5 are pictures of their own, 6 to 9 copies of 0 to 3; the evaluation set has 5 compressed, and pictures of its own."""
    own = [png(picture(number)) for number in range(6)]
    copies = [own[0], png(picture(1), note="other bytes"), jpeg(picture(2)), png(picture(3)[::2, ::2])]
    for name, images in (("own", own + copies), ("eval", [jpeg(picture(9)), jpeg(picture(5))])):
        (tmp_path / name).mkdir()
        pack(tmp_path / name, [{"png": image, "cls": b"1"} for image in images], samples_per_shard=4)
    return DedupRequest(dataset=open_dataset(tmp_path / "own"), against=(open_dataset(tmp_path / "eval"),), output=tmp_path / "list.txt")


def removed(request: DedupRequest) -> set[str]:
    return set(read_removals(request.output).names)


def test_every_kind_of_copy(request_: DedupRequest, tmp_path: Path) -> None:
    progress: list[int] = []
    summary = dedup(request_, report=progress.append)
    assert removed(request_) == {"000005", "000006", "000007", "000008", "000009"}
    assert summary.counts == {("near", True): 1, ("bytes", False): 1, ("pixels", False): 1, ("near", False): 2}
    assert (summary.num_removed, summary.num_unreadable) == (5, 0)
    assert progress[-1] == 12
    lines = request_.pairs_path.read_text().splitlines()
    assert lines[0] == "removed\tkind\tdistance\trepeats\tin"
    assert lines[2] == f"000006\tbytes\t0\t000000\t{tmp_path / 'own'}"
    assert lines[1].startswith("000005\tnear\t")
    assert lines[1].endswith(f"\t000001\t{tmp_path / 'eval'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "list.txt", "list.txt.pairs.tsv", "own"]


def test_only_against_the_evaluation_set(request_: DedupRequest) -> None:
    dedup(replace(request_, compares_own=False))
    assert removed(request_) == {"000005"}


def test_only_exact_ones(request_: DedupRequest) -> None:
    dedup(replace(request_, max_distance=0, against=()))
    assert {"000006", "000007"} <= removed(request_)


@pytest.mark.dist
def test_the_list_does_not_depend_on_workers(request_: DedupRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "parts", partial(parts, samples_per_part=3))
    for workers in (1, 2):
        dedup(replace(request_, output=tmp_path / f"{workers}.txt"), workers=workers)
    assert (tmp_path / "1.txt").read_bytes() == (tmp_path / "2.txt").read_bytes()


def test_a_killed_command_looks_only_at_what_is_left(request_: DedupRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "find_matches", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            dedup(request_)
    assert not request_.output.exists()
    assert len(list(request_.work.glob("*.npy"))) == 2
    monkeypatch.setattr("vitscale_data_tools.fingerprints.fingerprint", lambda _: pytest.fail("looked at again"))
    dedup(request_)
    assert len(removed(request_)) == 5
    assert not request_.work.exists()


def test_killed_before_the_list_was_written_it_replaces_what_lies_beside_it(
    request_: DedupRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(request_, sheet=tmp_path / "pairs.png")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_removal_lines", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            dedup(request)
    assert request.pairs_path.exists()
    assert (tmp_path / "pairs.png").exists()
    dedup(request)
    assert len(removed(request)) == 5
    with pytest.raises(UsageError, match="exists already"):
        dedup(replace(request, sheet=None, output=tmp_path / "pairs.png"))


def test_unreadable_images_are_counted_and_compared_by_their_bytes(tmp_path: Path) -> None:
    pack(tmp_path, [{"jpg": data} for data in (b"x", b"y", b"x", jpeg(picture(0)))], samples_per_shard=4)
    request = DedupRequest(dataset=open_dataset(tmp_path), against=(), output=tmp_path / "list", sheet=tmp_path / "s.png")
    summary = dedup(request)
    assert (summary.num_unreadable, removed(request)) == (3, {"000002"})


def test_a_sheet_shows_each_pair(request_: DedupRequest, tmp_path: Path) -> None:
    dedup(replace(request_, sheet=tmp_path / "pairs.png"))
    with PIL.Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.size == (8 * 166 + 6, 2 * 194 + 6)
        assert len(sheet.getcolors(1 << 24) or ()) > 1000


def test_nothing_to_remove(tmp_path: Path) -> None:
    pack(tmp_path, [{"png": png(picture(number))} for number in range(3)], samples_per_shard=4)
    request = DedupRequest(dataset=open_dataset(tmp_path), against=(), output=tmp_path / "list", sheet=tmp_path / "s.png")
    assert dedup(request).num_removed == 0
    assert removed(request) == set()
    assert not (tmp_path / "s.png").exists()


def test_keys_that_name_two_samples_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"same": {"png": png(picture(ord(name)))}})
    write_index(plan_index(IndexRequest(source=str(tmp_path), allow_duplicate_keys=True)))
    with pytest.raises(DataError, match=r"the key 'same' names samples in a\.tar and b\.tar"):
        dedup(DedupRequest(dataset=open_dataset(tmp_path), against=(), output=tmp_path / "list"))


def test_a_key_that_a_list_cannot_hold_is_refused(tmp_path: Path) -> None:
    image = png(picture(0))
    write_tar(tmp_path / "a.tar", {"a": {"png": image}, "#b": {"png": image}})
    write_index(plan_index(IndexRequest(source=str(tmp_path))))
    with pytest.raises(DataError, match="the key '#b' cannot be a line of a removal list"):
        dedup(DedupRequest(dataset=open_dataset(tmp_path), against=(), output=tmp_path / "list"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_distance": 12}, "--threshold 12: between 0 and 11"),
        ({"against": (), "compares_own": False}, "has nothing to compare with"),
    ],
)
def test_requests_that_make_no_sense(request_: DedupRequest, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dedup(replace(request_, **changes))  # type: ignore[arg-type]


def test_a_list_is_not_overwritten(request_: DedupRequest) -> None:
    request_.output.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        dedup(request_)
