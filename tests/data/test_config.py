"""Settings of training data: what is refused when they are read, with the path and the remedy, before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_values
from vitscale.config import ConfigError, decode
from vitscale.data.config import MixtureConfig, ShardsConfig, StreamConfig
from vitscale.run_config import RunConfig

SHARDS = {"kind": "shards", "path": "shards"}
STREAM = {"kind": "webdataset_stream", "urls": ["s3://bucket/{0..9}.tar"]}
MIXTURE = {"kind": "mixture", "sets": {"a": {"path": "a", "weight": 0.7}, "b": {"path": "b", "weight": 0.3}}}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a shell": (STREAM | {"urls": ["pipe:cat a.tar"]}, r"data.*urls.*'pipe' would run a shell command"),
    "one of several": (STREAM | {"urls": ["a.tar", "b{1.tar", "ais://c"]}, r"braces that do not match.*'ais' is none"),
    "no shards": (STREAM | {"urls": []}, r"urls"),
    "an order of a stream": (STREAM | {"lanes": 4}, r"lanes"),
    "prefetching without processes": (SHARDS | {"num_workers": 0, "prefetch": 4}, r"prefetch 4 has no effect with num_workers 0"),
    "one set": (MIXTURE | {"sets": {"a": {"path": "a", "weight": 1.0}}}, r"sets"),
    "no weight": (MIXTURE | {"sets": {"a": {"path": "a", "weight": 0.0}, "b": {"path": "b", "weight": 1.0}}}, r"weight"),
    "a set whose name is a path": (
        MIXTURE | {"sets": {"../a": {"path": "a", "weight": 1.0}, "b": {"path": "b", "weight": 1.0}}},
        r"\.\./a",
    ),
    "another kind": ({"kind": "tfrecord", "path": "x"}, r"kind"),
}


def read(root: Path, data: dict[str, Any]) -> RunConfig:
    return decode(RunConfig, values=tiny_values(root) | {"data": data}, source="run.yaml")


@pytest.mark.parametrize(("data", "told"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){told}"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "kind", "shown"),
    [(SHARDS, ShardsConfig, "shards"), (STREAM, StreamConfig, "s3://bucket/{0..9}.tar"), (MIXTURE, MixtureConfig, "a, b")],
)
def test_each_kind_is_told_by_its_name_and_says_where_it_lies(tmp_path: Path, data: dict[str, Any], kind: type, shown: str) -> None:
    config = read(tmp_path, data).data
    assert isinstance(config, kind)
    assert config.shown == shown
    assert config.prefetch_batches == 4
