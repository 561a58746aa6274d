"""What errors of local files mean, one by one: the short list of those that lose data, and everything else."""

import errno
import os
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale.data.storage.local_errors import classify_local
from vitscale.data.storage.retry import TransientError
from vitscale.data.types import UnreachableDataError

DAMAGE = ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EIO", "ENODATA", "EILSEQ", "EBADMSG", "EUCLEAN")


def _error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", DAMAGE)
def test_bytes_that_are_gone_are_lost(name: str, tmp_path: Path) -> None:
    found = classify_local(_error(name), root=tmp_path, name="a.tar")
    assert type(found) is DataError
    assert str(found).startswith(f"{tmp_path}/a.tar: cannot be read: {os.strerror(getattr(errno, name))}. ")


@pytest.mark.parametrize("name", sorted(set(errno.errorcode.values()) - set(DAMAGE)))
def test_everything_else_is_of_the_machine_and_may_pass(name: str, tmp_path: Path) -> None:
    found = classify_local(_error(name), root=tmp_path, name="a.tar")
    assert isinstance(found, TransientError)
    assert str(found) == os.strerror(getattr(errno, name))


@pytest.mark.parametrize("name", ["ENOENT", "ENOTDIR"])
def test_a_folder_that_is_gone_loses_nothing(name: str, tmp_path: Path) -> None:
    found = classify_local(_error(name), root=tmp_path / "unmounted", name="a.tar")
    assert isinstance(found, UnreachableDataError)
    assert "there is no folder" in str(found)


def test_an_error_without_words(tmp_path: Path) -> None:
    assert str(classify_local(OSError(), root=tmp_path, name="a.tar")) == "OSError"
