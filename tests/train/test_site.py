"""Where a run takes place: its directory is held by one run at a time, and must be writable."""

from pathlib import Path

import pytest

from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.config import ConfigError, UsageError
from vitscale.train.build import open_run


def test_the_directory_is_locked_while_the_run_is_open_and_free_after(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for _ in range(2):
        with open_run(config), pytest.raises(UsageError, match="another process is training"), open_run(config):
            pass


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_that_cannot_be_written_is_a_configuration_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=f"output: the run directory {tmp_path}/{where}/tiny cannot be written: .*Not a directory"):
        api.train(tiny_config(tmp_path, f"output={tmp_path}/{where}"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_log_that_cannot_be_written_is_one_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "logs").write_text("")
    with pytest.raises(ConfigError, match=r"output: the run directory .*logs: File exists"):
        api.train(config)
