"""Remote copies in a real S3 server: whole or not taken for one, never sent twice, verified when they come back."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoint.simulation import Tensors, make_tensors, save_as
from tests.checkpoint.store import SECRET, environment, faulty_store, fresh_address, quick_writer
from tests.data.fault_proxy import Flip, Status, Truncate
from tests.data.write_faults import RefusedWrites, WriteFaultProxy
from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.manifest import NewerVersionError
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.remote import (
    DamagedCopyError,
    RemoteCheckpoints,
    UploadCancelledError,
    find_newest_or_download,
)
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.config import CheckpointError, ConfigError
from vitscale.data.storage.object_writer import ObjectWriter
from vitscale.data.storage.retry import RetryPolicy

ROOT = Path(__file__).resolve().parents[2]
SMALL = make_tensors(seed=1, shapes={"a": (40,)}, kinds=("weight",))
LARGE = make_tensors(seed=1, shapes={"a": (3_000_000,)}, kinds=("weight",))
NAMES = ["config.yaml", "manifest.json", "rank-00000.safetensors", "rank-00001.safetensors", "state.json"]


@pytest.fixture(scope="module")
def proxy() -> Iterator[WriteFaultProxy]:
    with faulty_store() as proxy:
        yield proxy


@pytest.fixture
def address(proxy: WriteFaultProxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    return fresh_address(proxy, monkeypatch=monkeypatch, name=request.node.name)


@pytest.fixture
def remote(address: str) -> RemoteCheckpoints:
    return RemoteCheckpoints(address, writer=quick_writer(address))


def _save(folder: Path, *steps: int, tensors: Tensors = SMALL, world_size: int = 2) -> list[Path]:
    return [save_as(tensors, folder=folder / "checkpoints", step=step, world_size=world_size) for step in steps]


def _objects(proxy: WriteFaultProxy) -> list[str]:
    """Requests that put a whole file, by its name."""
    return [request.split("?")[0].rpartition("/")[2] for request in proxy.writes if request.startswith("PUT") and "?" not in request]


def _contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_there_and_back(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 7)
    done = remote.upload(saved)
    assert done.num_bytes == done.sent_bytes == sum(map(len, _contents(saved).values()))
    assert _objects(proxy)[-1] == "manifest.json"
    assert sorted(_objects(proxy)) == NAMES
    assert (remote.find().steps, remote.find().passed_over) == ((7,), ())

    path = remote.download(7, folder=tmp_path / "elsewhere" / "checkpoints")

    assert path.name == "step-00000007"
    assert _contents(path) == _contents(saved)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000007"]
    verify(path)


def test_large_files_go_in_parts_and_come_back_in_ranges(
    remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitscale.checkpoint.remote._RANGE_BYTES", 1_000_003)  # thirteen ranges, the last shorter
    (saved,) = _save(tmp_path, 1, tensors=LARGE, world_size=1)
    proxy.refuse([None, RefusedWrites(503, "SlowDown"), None, RefusedWrites(503, "SlowDown")])
    remote.upload(saved)
    assert sum("partNumber=" in request for request in proxy.writes) > 3
    proxy.inject([Status(503), Truncate()])
    path = remote.download(1, folder=tmp_path / "back")
    assert torch.equal(CheckpointReader(path).read_full("a"), LARGE["a", "weight"])


def test_what_is_there_is_not_sent_again(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 1)
    remote.upload(saved)
    proxy.refuse([])
    assert remote.upload(saved).sent_bytes == 0
    assert proxy.writes == []

    # Of another save of this step, by another world and so in other files, only what differs goes.
    (again,) = _save(tmp_path, 1, world_size=1)
    remote.upload(again)
    assert proxy.writes[0].startswith("POST")  # its manifest is deleted before any other file changes
    assert _objects(proxy) == ["rank-00000.safetensors", "manifest.json"]
    assert _contents(remote.download(1, folder=tmp_path / "back")) == _contents(again)
    assert sorted(remote._writer.list_sizes()) == [f"step-00000001/{name}" for name in NAMES if name != "rank-00001.safetensors"]


def test_a_file_of_equal_size_and_other_content_is_sent(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    (saved,) = _save(tmp_path, 1)
    remote.upload(saved)
    other = make_tensors(seed=2, shapes={"a": (40,)}, kinds=("weight",))
    (again,) = _save(tmp_path, 1, tensors=other)
    assert remote.upload(again).sent_bytes > 0
    assert torch.equal(CheckpointReader(remote.download(1, folder=tmp_path / "back")).read_full("a"), other["a", "weight"])


@pytest.mark.dist
@pytest.mark.parametrize("killed_at", ["rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"])
def test_a_killed_upload_is_no_checkpoint_and_is_gone_on_with(
    address: str, remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy, killed_at: str
) -> None:
    older, saved = _save(tmp_path, 1, 2)
    remote.upload(older)
    processes: list[subprocess.Popen[bytes]] = []

    def kill(request: str) -> None:
        if request.split("?")[0].endswith(f"step-00000002/{killed_at}"):
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].wait()

    # The server does not see the request during which the process died.
    proxy.refuse([RefusedWrites(503, "SlowDown") if name == killed_at else None for name in _order()], hook=kill)
    command = [sys.executable, "-m", "tests.checkpoint.upload_script", address, str(saved)]
    processes.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment(proxy), "PYTHONPATH": str(ROOT)}))
    assert processes[0].wait(timeout=60) == -signal.SIGKILL

    proxy.refuse([])
    assert remote.find().steps == (1,)
    if killed_at != _order()[0]:
        assert [reason.partition("/step")[2] for reason in remote.find().passed_over] == ["-00000002: its upload did not finish"]
    remote.upload(saved)
    assert _objects(proxy) == _order()[_order().index(killed_at) :]
    assert remote.find().steps == (2, 1)
    verify(remote.download(2, folder=tmp_path / "back"))


def _order() -> list[str]:
    """The order in which files are sent."""
    return ["rank-00000.safetensors", "rank-00001.safetensors", "state.json", "config.yaml", "manifest.json"]


def test_refusals_for_the_moment_are_absorbed(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 1)
    proxy.refuse([RefusedWrites(503, "SlowDown")] * 9)
    proxy.inject([Status(503)] * 9)
    remote.upload(saved)
    proxy.inject([Status(503)] * 9)
    assert remote.find().steps == (1,)
    proxy.inject([Status(503)] * 9)
    verify(remote.download(1, folder=tmp_path / "back"))


def test_a_store_that_stays_away_is_one_paragraph_without_secrets(address: str, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 1)
    writer = ObjectWriter(address, policy=RetryPolicy(num_tries=2, first_pause_seconds=0.001))
    remote = RemoteCheckpoints(address, writer=writer)
    proxy.refuse([RefusedWrites(503, "SlowDown")] * 50)
    with pytest.raises(CheckpointError, match=r"^step-00000001 could not be copied to s3://.*could not be written: 2 tries") as caught:
        remote.upload(saved)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    proxy.refuse([RefusedWrites(403, "AccessDenied")] * 50)
    with pytest.raises(CheckpointError, match="may write and delete here") as caught:
        remote.upload(saved)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["rank-00001.safetensors", "state.json"])
def test_what_rotted_since_the_save_is_not_sent(remote: RemoteCheckpoints, tmp_path: Path, name: str) -> None:
    (saved,) = _save(tmp_path, 1)
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name}: its content changed since it was saved .* it was not copied"):
        remote.upload(saved)
    assert f"step-00000001/{name}" not in remote._writer.list_sizes()
    assert remote.find().steps == ()


def test_a_cancelled_upload_stops(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    (saved,) = _save(tmp_path, 1)
    with pytest.raises(UploadCancelledError):
        remote.upload(saved, is_cancelled=lambda: True)
    assert remote._writer.list_sizes() == {}


def test_one_who_lost_the_run_commits_and_deletes_nothing(address: str, tmp_path: Path) -> None:
    def refuse() -> None:
        raise CheckpointError("another process trains here")

    owner, stranger = (RemoteCheckpoints(address, writer=quick_writer(address), check_owner=check) for check in (lambda: None, refuse))
    first, second = _save(tmp_path, 1, 2)
    owner.upload(first)
    with pytest.raises(CheckpointError, match="another process trains here"):
        stranger.upload(second)
    assert owner.find().steps == (1,)
    owner.upload(second)
    with pytest.raises(CheckpointError, match="another process trains here"):
        stranger.prune(RetentionPolicy(keep=1), saved=2)
    (first_again,) = _save(tmp_path, 1, world_size=1)
    with pytest.raises(CheckpointError, match="another process trains here"):
        stranger.upload(first_again)
    assert owner.find().steps == (2, 1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("manifest.json", "its upload did not finish"),
        ("state.json", r"state\.json is missing"),
        ("rank-00001.safetensors", r"rank-00001\.safetensors is missing"),
    ],
)
def test_what_lacks_a_file_is_passed_over(remote: RemoteCheckpoints, tmp_path: Path, name: str, reason: str) -> None:
    for path in _save(tmp_path, 1, 2):
        remote.upload(path)
    remote._writer.delete([f"step-00000002/{name}"])
    fresh = RemoteCheckpoints(remote.root, writer=remote._writer)
    sought = find_newest_or_download(tmp_path / "back", remote=fresh)
    assert sought.found.checkpoint == tmp_path / "back" / "step-00000001"
    assert len(sought.messages) == 2
    assert sought.messages[0].startswith(f"passed over {remote.root}/step-00000002: ")
    assert re.search(reason, sought.messages[0])


def test_a_remote_manifest_that_was_edited_or_belongs_elsewhere_is_passed_over(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    first, second = _save(tmp_path, 1, 2)
    remote.upload(first)
    data = (second / "manifest.json").read_bytes()
    for step, text in ((3, data), (4, data.replace(b'"step": 2', b'"step": 4'))):
        remote._writer.put(f"step-0000000{step}/manifest.json", lambda text=text: [text], num_bytes=len(data), sha256="0" * 64)
    found = remote.find()
    assert found.steps == (1,)
    assert "edited by hand" in found.passed_over[0]
    assert "its manifest is that of step 2" in found.passed_over[1]


def test_a_copy_for_a_newer_vitscale_is_neither_passed_over_nor_deleted(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    first, second, third = _save(tmp_path, 1, 2, 3)
    remote.upload(first)
    values = json.loads((second / "manifest.json").read_bytes()) | {"version": 2}
    del values["sha256"]
    values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    data = json.dumps(values).encode()
    remote._writer.put("step-00000002/manifest.json", lambda: [data], num_bytes=len(data), sha256="0" * 64)
    for folder in (first.parent, tmp_path / "empty"):
        with pytest.raises(NewerVersionError, match=r"step-00000002/manifest\.json: written in version 2.*, or move its folder away"):
            find_newest_or_download(folder, remote=remote)
    remote.upload(third)
    with pytest.raises(NewerVersionError, match="version 2"):
        remote.prune(RetentionPolicy(keep=1), saved=3)
    assert "step-00000002/manifest.json" in remote._writer.list_sizes()


def test_a_copy_that_comes_back_changed_is_not_committed(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    for path in _save(tmp_path, 1, 2):
        remote.upload(path)
    back = tmp_path / "back"
    proxy.inject([None, Flip()])  # the manifest comes well, the first file does not
    with pytest.raises(DamagedCopyError, match=r"step-00000002/rank-00000\.safetensors: its content is not what was sent"):
        remote.download(2, folder=back)
    assert [path.name for path in back.iterdir()] == ["step-00000002.tmp"]

    remote._manifests.clear()
    proxy.inject([None, None, None, None, Flip()])  # a listing, two manifests, the one to download, its first file
    sought = find_newest_or_download(back, remote=remote)
    assert sought.found.checkpoint == back / "step-00000001"
    assert "its content is not what was sent" in sought.messages[0]
    assert sought.messages[1] == f"downloaded step-00000001 from {remote.root}"


def test_a_copy_is_looked_at_before_it_is_downloaded(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 1)
    remote.upload(saved)
    asked: list[tuple[str, str]] = []

    def refuse(config_text: str, where: str) -> None:
        asked.append((config_text, where))
        raise CheckpointError("of another run")

    with pytest.raises(CheckpointError, match="of another run"):
        find_newest_or_download(tmp_path / "back", remote=remote, check=refuse)
    assert asked == [((saved / "config.yaml").read_text(), f"{remote.root}/step-00000001")]
    assert not (tmp_path / "back").exists()
    proxy.inject([None, Flip()])
    assert remote.config_text(1) is None, "a text that is not what was sent is no reason for anything"


def test_a_download_that_broke_off_is_gone_on_with(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    (saved,) = _save(tmp_path, 1)
    remote.upload(saved)
    partial = tmp_path / "back" / "step-00000001.tmp"
    (partial / "folder").mkdir(parents=True)
    (partial / "rank-00000.safetensors").write_bytes((saved / "rank-00000.safetensors").read_bytes())
    (partial / "rank-00001.safetensors").write_bytes(b"?" * (saved / "rank-00001.safetensors").stat().st_size)
    (partial / "rank-00002.safetensors").write_bytes(b"of another world")
    (partial / "manifest.json").write_bytes(b"torn")
    proxy.inject([])
    path = remote.download(1, folder=tmp_path / "back")
    assert _contents(path) == _contents(saved)
    read = {request.rpartition("/")[2] for request in proxy.requests if request.startswith("GET")}
    assert read == {"manifest.json", "rank-00001.safetensors", "state.json", "config.yaml"}


def test_a_download_that_does_not_fit_says_so_first(remote: RemoteCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved,) = _save(tmp_path, 1)
    remote.upload(saved)
    monkeypatch.setattr("vitscale.checkpoint.remote.free_bytes", lambda _: 100)
    with pytest.raises(CheckpointError, match=r"bytes .* are still to be downloaded and 100 bytes .* are free"):
        remote.download(1, folder=tmp_path / "back")


def test_resume_takes_the_newer_of_both(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    local = tmp_path / "checkpoints"
    first, second, third = _save(tmp_path, 1, 2, 3)
    for path in (first, second):
        remote.upload(path)
    assert find_newest_or_download(local, remote=None).found.checkpoint == third
    assert find_newest_or_download(local, remote=remote).found.checkpoint == third

    # A damaged newer one is replaced by its copy; one that is newer still stays and is told of.
    (second / "state.json").write_text("{}")
    (third / "state.json").write_text("{}")
    sought = find_newest_or_download(local, remote=remote)
    assert sought.found.checkpoint == second
    assert [entry.path.name for entry in sought.found.passed_over] == ["step-00000003"]
    assert sought.messages == (f"downloaded step-00000002 from {remote.root}",)
    verify(second)
    assert sorted(path.name for path in local.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_store_out_of_reach_stops_only_a_run_that_has_nothing_else(address: str, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    remote = RemoteCheckpoints(address, writer=ObjectWriter(address, policy=RetryPolicy(num_tries=1)))
    proxy.inject([Status(503)] * 4)
    with pytest.raises(CheckpointError, match=r"could not be listed: .* set checkpoint\.upload_to=null to start over"):
        find_newest_or_download(tmp_path / "checkpoints", remote=remote)
    (saved,) = _save(tmp_path, 1)
    sought = find_newest_or_download(tmp_path / "checkpoints", remote=remote)
    assert sought.found.checkpoint == saved
    assert sought.messages[0].startswith("going on from the local checkpoint: the checkpoints in s3://")


def test_an_empty_store_is_a_start_from_scratch(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    sought = find_newest_or_download(tmp_path, remote=remote)
    assert (sought.found.checkpoint, sought.messages) == (None, ())


def test_retention_there_deletes_manifests_first(remote: RemoteCheckpoints, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    for path in _save(tmp_path, 10, 20, 30, 40, 50):
        remote.upload(path)
    remote._writer.delete(["step-00000020/manifest.json", "step-00000050/manifest.json", "step-00000010/state.json"])
    before = set(remote._writer.list_sizes())
    seen: list[set[str]] = []
    proxy.refuse([], hook=lambda _: seen.append(set(quick_writer(remote.root).list_sizes())))

    # 20 was left by an upload that died, and so were 10 and 50; the latter may still be under way.
    assert remote.prune(RetentionPolicy(keep=1), saved=40, pending=[10]) == ["step-00000020", "step-00000030"]

    assert {name.partition("/")[0] for name in remote._writer.list_sizes()} == {"step-00000010", "step-00000040", "step-00000050"}
    between = before - {name for name in before if name.startswith("step-00000020/")} - {"step-00000030/manifest.json"}
    assert between in seen
    assert remote.prune(RetentionPolicy(keep=1), saved=50) == []  # 50 is not whole there


def test_an_outage_in_mid_deletion_leaves_no_whole_looking_wreck(address: str, tmp_path: Path, proxy: WriteFaultProxy) -> None:
    remote = RemoteCheckpoints(address, writer=ObjectWriter(address, policy=RetryPolicy(num_tries=1)))
    for path in _save(tmp_path, 1, 2):
        remote.upload(path)
    proxy.refuse([None, RefusedWrites(503, "SlowDown")])
    with pytest.raises(CheckpointError, match=r"old checkpoints in s3://.* could not be deleted"):
        remote.prune(RetentionPolicy(keep=1), saved=2)
    assert remote.find().steps == (2,)
    assert remote.prune(RetentionPolicy(keep=1), saved=2) == ["step-00000001"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/mnt/copies", "give an address that starts with s3://, gs://, az://"),
        ("https://example.com/x", "give an address that starts with s3://, gs://, az://"),
        (f"s3://key:{SECRET}@bucket/x", "an address must not hold a user name, a password"),
        ("s3:///x", "an address without a bucket"),
    ],
)
def test_an_address_that_will_not_do_is_a_wrong_setting(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^checkpoint\.upload_to: .*{message}") as caught:
        RemoteCheckpoints(address)
    assert SECRET not in str(caught.value)
