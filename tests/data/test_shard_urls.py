"""Addresses of shards: what the short forms stand for, and what is refused before anything is opened."""

import os
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale.data.shard_urls import Location, expand_urls, locate, url_problem

REFUSED = {
    "pipe:cat /etc/passwd": "'pipe' would run a shell command",
    "PIPE:rm": "'pipe' would run a shell command",
    "htgs://bucket/a.tar": "is none that is read here",
    "sftp://host/a.tar": "is none that is read here",
    "ais://b/a.tar": "is none that is read here",
    "hf://datasets/a.tar": "is none that is read here",
    "-": "not the path of a shard",
    "": "not the path of a shard",
    "a\0b.tar": "not the path of a shard",
    "https://host/a.tar?token=1": "no query and no wildcard",
    "https://user:hunter2@host/a.tar": "no user name and no password",
    "s3://bucket/*.tar": "no query and no wildcard",
    "s{0..9.tar": "braces that do not match",
    "s{{0..9}}.tar": "braces inside braces",
    "${HOME}/a.tar": "{HOME} is neither a range",
    "s{9..0}.tar": "not a range that rises",
    "s{0..99999999}.tar": "not a range that rises, of at most",
    "s{0..99999}{0..99999}.tar": "stands for 10000000000 shards",
}


@pytest.mark.parametrize(("url", "reason"), REFUSED.items())
def test_refused(url: str, reason: str) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert reason in problem


@pytest.mark.parametrize(
    "url", ["a.tar", "/abs/a-{000..011}.tar", "file:///x/a.tar", "s3://bucket/a.tar", "https://host/{a,b}.tar", "a b$c.tar"]
)
def test_accepted(url: str) -> None:
    assert url_problem(url) is None


@pytest.mark.parametrize(
    ("url", "shards"),
    [
        ("s3://b/s-{08..11}.tar", ["s-08", "s-09", "s-10", "s-11"]),
        ("s3://b/s-{8..11}.tar", ["s-8", "s-9", "s-10", "s-11"]),
        ("s3://b/s-{000..2}.tar", ["s-000", "s-001", "s-002"]),
        ("s3://b/{x,y}-{0..1}.tar", ["x-0", "x-1", "y-0", "y-1"]),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(url: str, shards: list[str]) -> None:
    assert expand_urls([url]) == tuple(f"s3://b/{shard}.tar" for shard in shards)


def test_local_shards_by_range_wildcard_and_file_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b-1.tar", "b-0.tar", "c[1].tar"):
        (tmp_path / name).touch()
    assert expand_urls(["b-*.tar"]) == expand_urls(["b-{0..1}.tar"]) == ("b-0.tar", "b-1.tar")
    assert expand_urls([f"file://{tmp_path}/b-0.tar"]) == (f"{tmp_path}/b-0.tar",)
    assert expand_urls(["c[1].tar"]) == ("c[1].tar",), "a file that has that name, not a wildcard"


def test_nothing_of_the_environment_is_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", str(tmp_path))
    monkeypatch.setenv("WDS_WHERE", str(tmp_path))
    (tmp_path / "a.tar").touch()
    for url in ("$WHERE/a.tar", "~/a.tar"):
        with pytest.raises(DataError, match="no such file"):
            expand_urls([url])
    assert os.environ["WHERE"]


def test_shards_that_are_not_there_or_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataError, match=r"a-1\.tar: no such file"):
        expand_urls([f"{tmp_path}/a.tar", f"{tmp_path}/a-{{1..2}}.tar"])
    with pytest.raises(DataError, match="no file fits"):
        expand_urls([f"{tmp_path}/*.tgz"])
    with pytest.raises(DataError, match=r"a\.tar is named twice, by "):
        expand_urls([f"{tmp_path}/a.tar", f"{tmp_path}/*.tar"])


@pytest.mark.parametrize(
    ("shard", "root", "name"),
    [
        ("a.tar", ".", "a.tar"),
        ("/a.tar", "/", "a.tar"),
        ("x/y/a.tar", "x/y", "a.tar"),
        ("s3://bucket/set/a.tar", "s3://bucket/set", "a.tar"),
    ],
)
def test_a_shard_is_a_file_of_a_storage(shard: str, root: str, name: str) -> None:
    assert locate(shard) == Location(root=root, name=name)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/a.tar",
        "https://user:hunter2@host/a{0.tar",
        "https://host/a.tar?X-Amz-Signature=hunter2",
        "az://container/a.tar?sig=hunter2",
        "ftp://user:hunter2@host/a.tar",
    ],
)
def test_secrets_in_an_address_are_not_echoed(url: str) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert "hunter2" not in problem
    assert "a.tar" in problem or "a{0.tar" in problem


def test_a_path_that_cannot_be_looked_at_is_one_paragraph(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/{'x' * 300}.tar", f"{tmp_path}/{'x' * 300}*.tar"):
        with pytest.raises(DataError, match="cannot be read: File name too long"):
            expand_urls([url])
