"""Jobs that were done before a kill are not done again, and nothing is left when all are done."""

from pathlib import Path

import pytest

from tests.data.packed import pack_images
from vitscale.config import UsageError
from vitscale_data_tools import stats as stats_module
from vitscale_data_tools import verify as verify_module
from vitscale_data_tools.jobs import Advance, run_jobs
from vitscale_data_tools.kept_results import Form, keeping
from vitscale_data_tools.stats import as_json, measure
from vitscale_data_tools.verify import verify_dataset


def work(job: int, advance: Advance) -> list[int]:
    if job == 3:
        raise KeyboardInterrupt
    advance(10)
    return [job, job * job]


def again(job: int, advance: Advance) -> list[int]:
    assert job >= 3, "done before"
    advance(10)
    return [job, job * job]


FORM: Form[int, list[int]] = Form(
    name=str, size=lambda _: 10, encode=lambda result: " ".join(map(str, result)).encode(), decode=lambda raw: list(map(int, raw.split()))
)


def test_finished_jobs_are_not_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt), keeping(work, folder=folder, form=FORM) as task:
        run_jobs(task, range(5), workers=1)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "lock"]
    progress: list[int] = []
    with keeping(again, folder=folder, form=FORM) as task:
        assert run_jobs(task, range(5), workers=1, report=progress.append) == [[job, job * job] for job in range(5)]
    assert progress == [10, 20, 30, 40, 50]
    assert not folder.exists()


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    with keeping(again, folder=None, form=FORM) as task:
        assert task is again
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        keeping(again, folder=tmp_path / "w", form=FORM),
        pytest.raises(UsageError, match="another process is working there"),
        keeping(again, folder=tmp_path / "w", form=FORM),
    ):
        pass


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_verify_and_stats_go_on_to_the_same_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    dataset = pack_images(tmp_path / "d", num_samples=30, samples_per_shard=10)
    raw = bytearray((tmp_path / "d" / "train-00001.tar").read_bytes())
    raw[700] ^= 1
    (tmp_path / "d" / "train-00001.tar").write_bytes(raw)
    folder = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(verify_module, "VerifyReport", killed)
        patch.setattr("vitscale_data_tools.kept_results.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            verify_dataset(dataset, work=folder)
        with pytest.raises(KeyboardInterrupt):
            measure(dataset, work=folder)
    assert len(list(folder.glob("*.json"))) == 3 + 1
    expected, measured = verify_dataset(dataset), measure(dataset)
    # The kept results are there under names of their own, so both commands could even share a folder.
    with monkeypatch.context() as patch:
        patch.setattr(verify_module, "_whole_problems", lambda *_, **__: pytest.fail("checked again"))
        patch.setattr("vitscale_data_tools.kept_results.shutil.rmtree", lambda _: None)
        assert verify_dataset(dataset, work=folder).shards == expected.shards
    monkeypatch.setattr(stats_module, "_count", lambda *_, **__: pytest.fail("measured again"))
    assert as_json(measure(dataset, work=folder)) == as_json(measured)
    assert not folder.exists()
