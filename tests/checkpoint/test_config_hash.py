"""The hash of a configuration: of what binds only, and the same on every machine."""

from typing import Literal

from pydantic import Field

from vitscale.checkpoint.config_hash import config_hash
from vitscale.config import OPERATIONAL, Config


class Part(Config):
    kind: Literal["part"] = "part"
    rate: float = 1e-3
    workers: int = Field(default=2, json_schema_extra=OPERATIONAL)


class Whole(Config):
    seed: int = 0
    part: Part = Part()
    sizes: tuple[int, ...] = (1, 2)
    more: Part | None = None


def test_it_is_the_sha256_of_the_documented_text() -> None:
    # printf '{"more":null,"part.kind":"part","part.rate":0.001,"seed":0,"sizes":[1,2]}' | sha256sum
    assert config_hash(Whole()) == "afca650c5209a11e28d67a9043b0af9fecbd3b38574ab0e970fc83d3e39f165f"


def test_only_what_binds_counts() -> None:
    assert config_hash(Whole(part=Part(workers=9))) == config_hash(Whole())
    others = [Whole(seed=1), Whole(part=Part(rate=0.002)), Whole(sizes=(2, 1)), Whole(more=Part())]
    assert len({config_hash(config) for config in [Whole(), *others]}) == 5
