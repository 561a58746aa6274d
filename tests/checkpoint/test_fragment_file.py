"""Rank files: readable by the safetensors library, exact in every range, and refused when damaged."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from vitscale.checkpoint import fragment_file
from vitscale.checkpoint.fragment_file import OpenFiles, read_pieces, read_range, write_fragments
from vitscale.checkpoint.fragments import Fragment
from vitscale.config import CheckpointError


def _fragments(seed: int = 0) -> list[Fragment]:
    flat = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    # Overlapping views of one storage, as a flat group of parameters gives them, and an empty one.
    return [
        Fragment(name="backbone.a", kind="weight", shape=(4, 10), start=0, values=flat[:25]),
        Fragment(name="backbone.a", kind="exp_avg", shape=(4, 10), start=0, values=flat[5:30]),
        Fragment(name="head.b", kind="weight", shape=(3,), start=1, values=flat[30:32]),
        Fragment(name="head.c", kind="weight", shape=(), start=0, values=flat[39:]),
        Fragment(name="head.d", kind="weight", shape=(9,), start=0, values=flat[:0]),
    ]


def _path(tmp_path: Path) -> Path:
    return tmp_path / "rank-00000.safetensors"


def test_the_safetensors_library_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragment_file, "CHUNK_ELEMENTS", 7)
    fragments = _fragments()
    write_fragments(_path(tmp_path), fragments=fragments)
    with safe_open(_path(tmp_path), "pt") as oracle:
        assert set(oracle.keys()) == {"backbone.a|weight|0", "backbone.a|exp_avg|0", "head.b|weight|1", "head.c|weight|0"}
        for fragment in fragments[:-1]:
            read = oracle.get_tensor(f"{fragment.name}|{fragment.kind}|{fragment.start}")
            assert read.dtype == torch.float32
            assert torch.equal(read, fragment.values)
        assert '"head.c": []' in oracle.metadata()["shapes"]


def test_size_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    entry = write_fragments(_path(tmp_path), fragments=_fragments())
    data = _path(tmp_path).read_bytes()
    assert (entry.name, entry.bytes, entry.sha256) == (_path(tmp_path).name, len(data), hashlib.sha256(data).hexdigest())


@hypothesis.given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), data=st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_range_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject) -> None:
    path = _path(tmp_path_factory.mktemp("ranges"))
    values = [torch.randn(length) for length in lengths]
    written = [Fragment(name=f"t{i}", kind="ema", shape=(value.numel() + 3,), start=i % 4, values=value) for i, value in enumerate(values)]
    write_fragments(path, fragments=written)
    pieces = read_pieces(path)
    assert [(piece.name, piece.kind, piece.shape, piece.start, piece.stop) for piece in pieces] == [
        (f.name, f.kind, f.shape, f.start, f.start + f.values.numel()) for f in written
    ]
    for piece, value in zip(pieces, values, strict=True):
        low = data.draw(st.integers(piece.start, piece.stop - 1))
        high = data.draw(st.integers(low + 1, piece.stop))
        into = torch.empty(high - low)
        read_range(piece, start=low, stop=high, into=into, files=OpenFiles())
        assert torch.equal(into, value[low - piece.start : high - piece.start])


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, 1, 0x00800000], dtype=torch.int32)
    write_fragments(_path(tmp_path), fragments=[Fragment(name="a", kind="weight", shape=(5,), start=0, values=bits.view(torch.float32))])
    into = torch.empty(5)
    read_range(read_pieces(_path(tmp_path))[0], start=0, stop=5, into=into, files=OpenFiles())
    assert torch.equal(into.view(torch.int32), bits)


def test_a_rank_that_owns_nothing_writes_a_valid_file(tmp_path: Path) -> None:
    write_fragments(_path(tmp_path), fragments=[])
    assert read_pieces(_path(tmp_path)) == []
    with safe_open(_path(tmp_path), "pt") as oracle:
        assert list(oracle.keys()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        Fragment(name="a|b", kind="weight", shape=(2,), start=0, values=torch.zeros(2)),
        Fragment(name="a", kind="weight", shape=(2,), start=0, values=torch.zeros(2, dtype=torch.float64)),
        Fragment(name="a", kind="weight", shape=(2,), start=0, values=torch.zeros(1, 2)),
        Fragment(name="a", kind="weight", shape=(2,), start=1, values=torch.zeros(2)),
    ],
)
def test_a_malformed_fragment_is_our_mistake(tmp_path: Path, wrong: Fragment) -> None:
    with pytest.raises(AssertionError):
        write_fragments(_path(tmp_path), fragments=[wrong])


def test_every_truncation_into_header_or_data_is_noticed(tmp_path: Path) -> None:
    write_fragments(_path(tmp_path), fragments=_fragments())
    data = _path(tmp_path).read_bytes()
    for length in range(len(data)):
        _path(tmp_path).write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged header"):
            read_pieces(_path(tmp_path))


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    write_fragments(_path(tmp_path), fragments=_fragments())
    piece = read_pieces(_path(tmp_path))[-1]
    with _path(tmp_path).open("r+b") as file:
        file.truncate(piece.offset + 2)
    with pytest.raises(CheckpointError, match=r"ends within head\.c"):
        read_range(piece, start=0, stop=1, into=torch.empty(1), files=OpenFiles())


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a|weight|0": torch.zeros(2)}, None),
        ({"a": torch.zeros(2)}, {"shapes": '{"a": [2]}'}),
        ({"a|weight|0": torch.zeros(2, dtype=torch.float16)}, {"shapes": '{"a": [2]}'}),
        ({"a|weight|1": torch.zeros(2)}, {"shapes": '{"a": [2]}'}),
        ({"a|weight|-1": torch.zeros(2)}, {"shapes": '{"a": [2]}'}),
        ({"a|gradient|0": torch.zeros(2)}, {"shapes": '{"a": [2]}'}),
        ({"a|weight|0": torch.zeros(1, 2)}, {"shapes": '{"a": [1, 2]}'}),
    ],
)
def test_a_safetensors_file_of_something_else_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    save_file(tensors, _path(tmp_path), metadata=metadata)
    with pytest.raises(CheckpointError, match="damaged header"):
        read_pieces(_path(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: cannot be read"):
        read_pieces(_path(tmp_path))


def test_only_so_many_files_stay_open_and_all_are_closed_at_the_end(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10)
    before = len(os.listdir("/proc/self/fd"))
    files = OpenFiles(limit=2)
    for path in [*paths, *paths]:
        into = bytearray(4)
        assert files.read(path, offset=8, into=memoryview(into)) == 2, "as many bytes as there are"
        assert into[0] == int(path.name)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    del files
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_others_close_meanwhile_is_read_to_its_end(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    files = OpenFiles(limit=1)

    def read_all(first: int) -> None:
        for number in [(first + turn) % 4 for turn in range(400)]:
            into = bytearray(1000)
            assert files.read(paths[number], offset=0, into=memoryview(into)) == 1000
            assert into == bytes([number]) * 1000

    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_all, range(4)))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_read_that_the_kernel_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fragments(_path(tmp_path), fragments=_fragments())
    piece = read_pieces(_path(tmp_path))[0]
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: preadv(descriptor, [buffers[0][:7]], offset))
    into = torch.empty(25)
    read_range(piece, start=0, stop=25, into=into, files=OpenFiles())
    assert torch.equal(into, _fragments()[0].values)


def test_a_write_that_is_given_up_stops_at_the_next_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragment_file, "CHUNK_ELEMENTS", 7)
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CheckpointError, match="given up"):
        write_fragments(_path(tmp_path), fragments=_fragments(), given_up=given_up)
    given_up.clear()
    write_fragments(tmp_path / "whole", fragments=_fragments(), given_up=given_up)
