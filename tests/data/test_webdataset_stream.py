"""Unindexed tars through the webdataset library: no hang at uneven numbers, damage told, nothing executed, no path opened."""

import dataclasses
import io
import os
import pickle
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset

from tests.data.fault_proxy import FaultProxy, Status, Truncate
from tests.data.packed import png_bytes
from tests.data.range_server import RangeServer
from tests.data.topologies import as_workers
from tests.train.tiny_run import events, pack_tiny, sample_ids, tiny_values
from vitscale import api
from vitscale.config import ConfigError, DataError, StopRequested, decode
from vitscale.data import webdataset_stream
from vitscale.data.config import StreamConfig
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import EvalTransform
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, train_loader
from vitscale.data.shard_urls import expand_urls
from vitscale.data.source import TrainingData
from vitscale.data.storage import storage_stream
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import LostSample, StagedTransform, UnreachableDataError
from vitscale.data.webdataset_stream import CAVEATS, StreamParts, open_stream
from vitscale.data.worker import Part
from vitscale.plan.describe import describe_run
from vitscale.run_config import RunConfig

TRANSFORM = EvalTransform(image_size=4, num_channels=1)
GLOBAL_BATCH = 16
Members = Sequence[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _library_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests read local files through the library itself, which refuses that once it has been told to be careful."""
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    monkeypatch.setenv("WDS_SECURE", "0")


def image(number: int) -> bytes:
    """A picture that tells its number."""
    return png_bytes(np.full((4, 4), number, np.uint8))


def members(numbers: Sequence[int]) -> Members:
    return [part for n in numbers for part in ((f"{n:04d}.png", image(n)), (f"{n:04d}.cls", str(n % 10).encode()))]


def write_tar(path: Path, contents: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in contents:
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    return path


def write_shards(folder: Path, sizes: Sequence[int]) -> tuple[str, ...]:
    """Shards of so many samples; the number of each is unique and below 256."""
    first, paths = 0, []
    for shard, size in enumerate(sizes):
        paths.append(str(write_tar(folder / f"s-{shard:02d}.tar", members(range(first, first + size)))))
        first += size
    return tuple(paths)


def parts_of(
    urls: Sequence[str], *, rank: int = 0, world_size: int = 1, start: int = 0, buffer: int = 1, batch: int = GLOBAL_BATCH
) -> StreamParts:
    return StreamParts(
        urls=tuple(urls),
        shuffle_buffer=buffer,
        transform=StagedTransform(starts=(0,), transforms=(TRANSFORM,)),
        seed=5,
        global_batch=batch,
        start_samples=start,
        rank_slice=rank_slice(batch, rank=rank, world_size=world_size),
    )


def numbers(part: Part) -> list[int]:
    """The numbers that a part's pictures show."""
    assert part.error is None, part.error
    return [] if part.batch is None else [int(value) for value in part.batch["image"].reshape(len(part.batch["image"]), -1)[:, 0]]


def read(urls: Sequence[str], *, num_parts: int, **options: int) -> list[Part]:
    return list(islice(parts_of(urls, **options), num_parts))


UNEVEN = [(3, 2, 2), (5, 4, 1), (1, 4, 2), (2, 1, 0), (7, 3, 2), (4, 16, 1)]


@pytest.mark.parametrize(("num_shards", "world_size", "num_workers"), UNEVEN)
def test_every_reader_gets_on_at_uneven_numbers(tmp_path: Path, num_shards: int, world_size: int, num_workers: int) -> None:
    urls = write_shards(tmp_path, [2 + shard for shard in range(num_shards)])
    totals: Counter[int] = Counter()
    for rank in range(world_size):
        for reader in as_workers(parts_of(urls, rank=rank, world_size=world_size), num_workers):
            for step, part in enumerate(islice(reader, 12)):
                totals[step] += len(numbers(part))
    assert totals == dict.fromkeys(range(12), GLOBAL_BATCH)


@pytest.mark.parametrize(("num_shards", "world_size"), [(3, 2), (5, 4), (2, 8), (9, 1)])
def test_all_readers_together_read_each_shard_once_per_pass(tmp_path: Path, num_shards: int, world_size: int) -> None:
    urls = write_shards(tmp_path, [1] * num_shards)
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(world_size):
        for part in islice(parts_of(urls, rank=rank, world_size=world_size), 40):
            assert part.batch is not None
            seen.update(zip(part.batch["epoch"].tolist(), part.batch["sample_id"].tolist(), strict=True))
    assert set(seen.values()) == {1}, "a sample of a pass that two readers had"
    num_whole_passes = 40 * GLOBAL_BATCH // world_size // num_shards
    first = range(max(1, num_whole_passes // 2))
    assert all(sum(number == of for number, _ in seen) == num_shards for of in first), "a pass that left a shard out"


def test_samples_are_those_that_the_library_reads_by_itself(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [5, 7, 4])
    theirs = {sample["__key__"]: sample["png"] for sample in webdataset.WebDataset(list(urls), shardshuffle=False)}
    (part,) = read(urls, num_parts=1)
    assert sorted(numbers(part)) == sorted(int(key) for key in theirs) == list(range(16))
    assert part.batch is not None
    assert part.batch["label"].tolist() == [number % 10 for number in numbers(part)]
    assert part.batch["sample_id"].min() >= 0
    assert part.io["bytes_read"] >= sum(os.path.getsize(url) for url in urls) - 1, "what it cost is told"


def test_a_topology_sees_the_same_samples_again_and_a_resume_other_ones(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [9, 9, 9])
    base = [numbers(part) for part in read(urls, num_parts=6, buffer=8)]
    assert [numbers(part) for part in read(urls, num_parts=6, buffer=8)] == base
    assert [numbers(part) for part in read(urls, num_parts=6, buffer=8, start=6 * GLOBAL_BATCH)] != base
    assert [numbers(part) for part in read(urls, num_parts=6, buffer=1)] != base


def test_the_shuffle_buffer_mixes_shards(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [40, 40])
    plain, mixed = (numbers(read(urls, num_parts=1, buffer=size)[0]) for size in (1, 64))
    assert np.all(np.abs(np.diff(plain)) == 1)
    assert np.mean(np.abs(np.diff(mixed)) == 1) < 0.5


def test_more_workers_than_samples_get_empty_parts(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [3])
    sizes = [[len(numbers(part)) for part in islice(worker, 3)] for worker in as_workers(parts_of(urls, batch=2), 3)]
    assert sorted(map(tuple, sizes)) == [(0, 0, 0), (1, 1, 1), (1, 1, 1)]


def lost(found: Sequence[Part]) -> list[LostSample]:
    return [sample for part in found for sample in part.lost]


def test_a_shard_cut_anywhere_is_reported_and_gives_only_whole_samples(tmp_path: Path) -> None:
    whole = write_shards(tmp_path, [6, 6])
    raw = Path(whole[1]).read_bytes()
    end = len(raw.rstrip(b"\0")) // 512 * 512 + 512
    for cut in [0, *range(100, end, 397), end, end + 512]:
        Path(whole[1]).write_bytes(raw[:cut])
        found = read(whole, num_parts=2)
        assert any(sample.shard == whole[1] and whole[1] in sample.reason for sample in lost(found)), cut
        for part in found:
            assert part.batch is not None
            assert part.batch["label"].tolist() == [number % 10 for number in numbers(part)], cut


def test_what_a_damaged_shard_held_is_estimated_from_whole_ones(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [10, 10, 10, 10])
    Path(urls[2]).unlink()
    found = lost(read(urls, num_parts=8))
    assert {sample.shard for sample in found} == {urls[2]}
    assert {sample.num_lost for sample in found} <= {1, 10}, "1 where no whole shard was read before"
    assert 10 in {sample.num_lost for sample in found}
    assert len({(sample.epoch, sample.sample_id) for sample in found}) == len(found) > 1, "once per pass"


def test_what_the_library_takes_for_the_end_without_a_word_is_reported(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [6, 60])
    raw = Path(urls[1]).read_bytes()
    half = len(raw) // 1024 * 512
    garbage = raw[:half] + np.random.default_rng(0).bytes(2048) + raw[half + 2048 :]
    for damaged in (garbage, Path(urls[0]).read_bytes() + raw):
        Path(urls[1]).write_bytes(damaged)
        reasons = {sample.reason for sample in lost(read(urls, num_parts=6))}
        assert len(reasons) == 1, reasons
        assert "its tar ends before byte" in reasons.pop() or damaged is garbage


def test_a_shard_that_cannot_be_reached_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(LocalStorage):
        """Whole for so many reads, then silent for good."""

        num_reads = 0

        def read_range(self, name: str, *, offset: int, length: int) -> bytes:
            self.num_reads += 1
            if self.num_reads > num_whole:
                raise UnreachableDataError("s3://bucket/s-00.tar: could not be read: 14 tries in 61.0 s failed. Check the network.")
            return super().read_range(name, offset=offset, length=length)

    monkeypatch.setattr(storage_stream, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(webdataset_stream, "open_storage", lambda root: Failing(Path(root)))
    urls = write_shards(tmp_path, [6])
    num_blocks = -(-Path(urls[0]).stat().st_size // 1000)
    for num_whole in range(num_blocks + 1):  # the last is the read that looks for the mark at the tar's end
        (part,) = read(urls, num_parts=1)
        assert type(part.error) is UnreachableDataError, num_whole
        assert str(part.error) == "s3://bucket/s-00.tar: could not be read: 14 tries in 61.0 s failed. Check the network."
        assert part.lost == ()


def test_a_sample_that_cannot_be_decoded_is_replaced_by_the_next_and_told(tmp_path: Path) -> None:
    contents = [("0007.png", b"no picture"), ("0007.cls", b"7"), *members([8])]
    url = str(write_tar(tmp_path / "a.tar", contents))
    (part,) = read([url], num_parts=1)
    assert numbers(part) == [8] * GLOBAL_BATCH
    assert part.batch is not None
    assert {sample.replaced_by for sample in part.lost} == set(part.batch["sample_id"].tolist())
    assert len(part.lost) == GLOBAL_BATCH
    assert "'0007'" in part.lost[0].reason


def test_a_set_without_a_readable_sample_ends_instead_of_hanging(tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "empty.tar", [("README", b"x"), ("LICENSE", b"y")])
    (tmp_path / "zero.tar").touch()
    (tmp_path / "text.tar").write_bytes(b"not a tar" * 1000)
    for name, told in ((str(empty), "tars without a member KEY.EXTENSION"), ("zero.tar", "zero.tar"), ("text.tar", "text.tar")):
        (part,) = read([str(tmp_path / name)], num_parts=1)
        assert isinstance(part.error, DataError)
        assert told in str(part.error)
    bad = str(write_tar(tmp_path / "bad.tar", [("1.png", b"x"), ("1.cls", b"1")]))
    (part,) = read([bad], num_parts=1)
    assert "samples in a row could not be decoded" in str(part.error)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"), io.BytesIO())
    (part,) = read([str(path)], num_parts=1)
    assert "compressed with gzip" in str(part.error)


class _Payload:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.trace),))


def test_pickled_members_are_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    payload = pickle.dumps(_Payload(trace))
    kinds = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "ten")
    contents = [*members([1]), *((f"0001.{kind}", payload) for kind in kinds)]
    url = str(write_tar(tmp_path / "a.tar", contents))
    assert numbers(read([url], num_parts=1)[0]) == [1] * GLOBAL_BATCH
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists(), "the payload was live"


def test_names_that_climb_are_labels_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ("../../escaped", "/tmp/absolute", "a/../../b", "x\ny")
    contents = [(f"{name}.{kind}", payload) for n, name in enumerate(names) for kind, payload in (("png", image(n)), ("cls", b"1"))]
    url = str(write_tar(folder / "a.tar", contents))
    before = sorted(tmp_path.rglob("*"))
    assert set(numbers(read([url], num_parts=1)[0])) == set(range(len(names)))
    assert sorted(tmp_path.rglob("*")) == before


def test_no_shell_and_no_rewriting_of_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = write_shards(tmp_path, [4])
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {tmp_path}/executed;")
    monkeypatch.setattr(sys.modules["webdataset.gopen"], "Popen", lambda *_args, **_options: pytest.fail("a process was started"))
    assert set(numbers(read(urls, num_parts=1)[0])) == set(range(4))
    assert webdataset.utils.enforce_security
    assert os.environ["WDS_SECURE"] == "1"
    for refused in (["pipe:cat a.tar"], [*urls, "pipe:cat a.tar"]):
        with pytest.raises(ValueError, match="would run a shell command"):
            StreamConfig(urls=refused)


def test_settings_name_shards_in_short() -> None:
    assert StreamConfig(urls=["s3://b/{0..9}.tar", "s3://c/a.tar"]).shown == "s3://b/{0..9}.tar and 1 more"
    assert StreamConfig(urls=["a.tar"]).shown == "a.tar"
    assert len(expand_urls(StreamConfig(urls=["s3://b/{0..9}.tar"]).urls)) == 10


def test_an_opened_stream_says_what_it_is_and_what_it_cannot_promise(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 6])
    config = StreamConfig(urls=[f"{tmp_path}/s-*.tar"], classes=["a", "b"], shuffle_buffer=4)
    data: TrainingData = open_stream(config)
    assert (data.classes, data.epoch_samples, data.cursor_unit, data.batch_ids(0, global_batch=16)) == (("a", "b"), None, 1, None)
    assert "2 unindexed shards" in data.notes[0]
    assert {"order", "resume", "checksums", "index"} <= set(" ".join(CAVEATS).replace("`", " ").split())
    transform = StagedTransform(starts=(0,), transforms=(TRANSFORM,))
    whole = rank_slice(GLOBAL_BATCH, rank=0, world_size=1)
    demand = Demand(transform=transform, seed=5, global_batch=GLOBAL_BATCH, start_samples=0, rank_slice=whole, replaced_before={})
    assert len(numbers(next(iter(data.parts(demand))))) == GLOBAL_BATCH
    other = StreamConfig(urls=[f"{tmp_path}/s-00.tar"])
    assert open_stream(other).identity() != data.identity() == open_stream(config).identity()


def test_without_the_library_one_paragraph_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [4])
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitscale\[webdataset\]'.*vitscale-data index"):
        open_stream(StreamConfig(urls=list(urls)))
    assert isinstance(read(urls, num_parts=1)[0].error, ConfigError), "in a worker, too, as a value"


def test_parts_travel_to_loader_processes(tmp_path: Path) -> None:
    parts = parts_of(write_shards(tmp_path, [4]))
    copy: StreamParts = pickle.loads(pickle.dumps(parts))
    assert dataclasses.replace(copy, transform=parts.transform) == parts
    found: Mapping[str, object] = dict(next(iter(copy)).batch or {})
    assert {"image", "label", "sample_id", "epoch"} <= found.keys()


def test_shards_behind_addresses_come_through_our_own_storage(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [5, 6, 5])
    files = {f"set/{Path(path).name}": Path(path).read_bytes() for path in paths}
    with RangeServer(files) as server, FaultProxy(server.port) as proxy:
        data = open_stream(StreamConfig(urls=[f"{proxy.url}/set/s-{{00..02}}.tar"]))
        proxy.inject([Status(503), Truncate(), Truncate(), Status(503)])  # the second answer is to HEAD and has no body
        (part,) = read(data.urls, num_parts=1)
        assert sorted(numbers(part)) == list(range(16))
        assert (part.lost, part.io["retries"]) == ((), 3), "a cut body is fetched again, not taken for the end"
        with pytest.raises(DataError, match=r"none\.tar"):
            open_stream(StreamConfig(urls=[f"{proxy.url}/set/none.tar"]))


def test_a_whole_run_on_a_stream_stops_resumes_and_says_what_it_cannot_promise(tmp_path: Path) -> None:
    urls = [str(pack_tiny(tmp_path) / "*.tar")]
    data = {"kind": "webdataset_stream", "urls": urls, "shuffle_buffer": 8, "num_workers": 0, "log_samples": True, "max_lost_fraction": 0.9}
    config = decode(RunConfig, values=tiny_values(tmp_path) | {"data": data}, source="stream")
    assert set(CAVEATS) <= set(api.plan(config).reasons)
    assert "as the stream comes" in describe_run(config, plan=api.plan(config))
    with pytest.raises(StopRequested):
        api.train(config, stop_at_step=3)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-2000])
    assert api.train(config).step == 6
    run_dir = tmp_path / "runs" / "tiny"
    told = [event["message"] for event in events(run_dir, "decision")]
    assert all(told.count(caveat) == 2 for caveat in CAVEATS), "at each start"
    assert [len(ids) for _, ids in sorted(sample_ids(run_dir).items())] == [16] * 6
    assert api.audit(run_dir, run_dir).exit_code == 0
    losses = events(run_dir, "lost_samples")
    assert losses
    assert all(".tar: damaged or missing" in loss["message"] for loss in losses), "shards that were cut meanwhile are named in the ledger"


@pytest.mark.dist
def test_real_loader_processes_at_uneven_numbers_neither_hang_nor_differ(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [2, 3, 4])
    wanted = [len(numbers(part)) for part in read(urls, num_parts=20)]
    sizes = [0] * 20
    for rank in range(2):
        share = Share(rank=rank, world_size=2, num_workers=2, prefetch=2)
        loader = train_loader(parts_of(urls, rank=rank, world_size=2, buffer=3), share=share, batch_keys=frozenset({"image", "label"}))
        try:
            for step in range(20):
                sizes[step] += len(next(loader)["image"])
            assert loader.take_lost() == []
            assert loader.take_io()["bytes_read"] > 0
        finally:
            loader.close()
    assert sizes == wanted
