"""Tars in an object store are indexed from there, through its faults, to the same data set as from a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.fault_proxy import FaultProxy, Short, Status, Truncate
from tests.data.servers import moto_server, overwrite, upload
from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale_data_tools import index_dataset as module
from vitscale_data_tools.exclude import exclude_samples
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.kept_results import kept_folder
from vitscale_data_tools.verify import verify_dataset

pytestmark = pytest.mark.dist


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    for number in range(3):
        write_tar(tmp_path / "tars" / f"part-{number}" / "a.tar", photo_samples(8, start=8 * number))
    with moto_server() as port, FaultProxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER2")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in (tmp_path / "tars").rglob("*.tar")}
        upload(port, files)
        yield proxy


def payloads(folder: Path) -> dict[str, dict[str, bytes]]:
    dataset = open_dataset(folder)
    samples = SampleReader(dataset).read(0, dataset.num_samples)
    return {sample.key: {name: bytes(view) for name, view in sample.members.items()} for sample in samples}


@pytest.mark.usefixtures("s3")
def test_a_tar_that_was_overwritten_since_a_kill_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of the same size, which a length would not show."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    request = IndexRequest(source="s3://bucket/tars", output=tmp_path / "remote")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            write_index(plan_index(request))
    assert plan_index(request).num_finished == 3
    old = (tmp_path / "tars/part-1/a.tar").read_bytes()
    write_tar(tmp_path / "tars/part-1/a.tar", {key: {**members, "cls": b"9"} for key, members in photo_samples(8, start=8).items()})
    new = (tmp_path / "tars/part-1/a.tar").read_bytes()
    assert len(new) == len(old)
    overwrite({"tars/part-1/a.tar": new})
    plan = plan_index(request)
    assert plan.num_finished == 2
    assert write_index(plan).manifest.classes == tuple("0123456789")
    assert verify_dataset(open_dataset(tmp_path / "remote")).is_sound


@pytest.mark.usefixtures("s3")
def test_a_check_that_was_killed_looks_again_at_what_was_overwritten(tmp_path: Path) -> None:
    write_index(plan_index(IndexRequest(source="s3://bucket/tars", output=tmp_path / "remote")))
    dataset = open_dataset(tmp_path / "remote")

    def killed(num_done: int) -> None:
        if num_done == dataset.num_samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kept_folder(tmp_path / "work") as kept:
        verify_dataset(dataset, kept=kept, report=killed)
    spoilt = (tmp_path / "tars/part-0/a.tar").read_bytes()[:-1] + b"x"
    overwrite({"tars/part-0/a.tar": spoilt})
    with kept_folder(tmp_path / "work") as kept:
        found = verify_dataset(dataset, kept=kept)
    assert [bool(shard.findings) for shard in found.shards] == [True, False, False]


def test_the_same_data_set_as_from_a_folder(s3: FaultProxy, tmp_path: Path) -> None:
    local = write_index(plan_index(IndexRequest(source=str(tmp_path / "tars"), output=tmp_path / "local"))).manifest
    plan = plan_index(IndexRequest(source="s3://bucket/tars", output=tmp_path / "remote"))
    s3.inject([Status(503), Truncate(), Short(), Status(429)])
    remote = write_index(plan).manifest
    assert remote.shards_root == "s3://bucket/tars"
    assert remote.model_copy(update={"shards_root": local.shards_root}) == local
    assert payloads(tmp_path / "remote") == payloads(tmp_path / "local")
    dataset = open_dataset(tmp_path / "remote")
    assert verify_dataset(dataset).is_sound
    key = next(iter(payloads(tmp_path / "local")))
    exclude_samples(dataset, keys=frozenset({key}), drops_damaged=False, output=tmp_path / "less")
    assert key not in payloads(tmp_path / "less")
    assert open_dataset(tmp_path / "less").manifest.shards_root == "s3://bucket/tars"
