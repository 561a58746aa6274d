"""What a run reads: one configuration class per kind of training data, each opened by a function of `vitscale.data.source`."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vitscale.config import OPERATIONAL, Auto, Config
from vitscale.data.shard_urls import url_problem
from vitscale.data.shares import cycle_slots
from vitscale.data.storage.block_cache import CacheConfig
from vitscale.data.types import JpegDecoder

_PREFETCH_BATCHES = 4
_SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class LoadingConfig(Config):
    """How any training data is loaded."""

    max_lost_fraction: float = Field(default=0.001, ge=0, lt=1, json_schema_extra=OPERATIONAL)
    """Samples that may be lost (missing, damaged or undecodable, each replaced by another), as a share of the data set or, in
    runs that consume more than one epoch, of the samples consumed; past it the run stops. 0 stops at the first."""
    jpeg_decoder: JpegDecoder = "simplejpeg"
    """simplejpeg: decodes whole images, with nothing to install. turbojpeg: decodes just the part of an image that a crop takes, by
    libturbojpeg 3, which every machine must then have. What is used is said here, never found out: a run is a function of
    its YAML."""
    num_workers: int = Field(default=1, ge=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank; 0 decodes in the training process. The batches are the same for any number."""
    prefetch: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Batches that each loader process prepares ahead; null: 4. Without loader processes nothing is prepared ahead."""
    log_samples: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Write the sample ids of every batch to samples/rank-NNNNN.jsonl, by which `vitscale audit` compares runs."""

    @model_validator(mode="after")
    def _prefetching_needs_processes(self) -> Self:
        if self.prefetch is not None and self.num_workers == 0:
            raise ValueError(f"prefetch {self.prefetch} has no effect with num_workers 0; leave it out, or set num_workers")
        return self

    @property
    def prefetch_batches(self) -> int:
        """`prefetch` with its default filled in."""
        return self.prefetch or _PREFETCH_BATCHES


class OrderedConfig(LoadingConfig):
    """How indexed samples are ordered; see `vitscale.data.order`."""

    lanes: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Canonical streams that the order is split into; the global batch is a multiple of it. Part of the order: it never
    depends on the number of ranks. auto: the greatest common divisor of the global batch and 256."""
    block: int = Field(default=64, ge=1)
    """Neighbouring samples fetched with one ranged read. Part of the order."""
    window: int = Field(default=4, ge=1)
    """Blocks shuffled together within a lane. Part of the order."""
    repeats: int = Field(default=1, ge=1)
    """Repeated augmentation (Hoffer et al. 2020): each sample is drawn this many times in a row, each time with draws of its
    own. Samples are counted with their repeats, so an epoch is as many times longer."""
    cache: CacheConfig | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Blocks of shards from a store kept on a local disk, which all processes of a machine share; null keeps none."""


class ShardsConfig(OrderedConfig):
    """One packed or indexed data set."""

    kind: Literal["shards"] = "shards"
    path: str
    """The data set: a folder that holds manifest.json."""

    @property
    def shown(self) -> str:
        """Where the data lies, for messages."""
        return self.path


class MixedSetConfig(Config):
    """One data set of a mixture."""

    path: str
    """The data set: a folder that holds manifest.json."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Its share of the samples, relative to the other weights."""


class MixtureConfig(OrderedConfig):
    """Several packed or indexed data sets, mixed sample by sample in fixed proportions; see `vitscale.data.mixture`.

    `lanes`, `block`, `window` and `repeats` are those of every set. The loader holds windows of every set at the same time.
    """

    kind: Literal["mixture"] = "mixture"
    sets: dict[Annotated[str, Field(pattern=_SET_NAME)], MixedSetConfig] = Field(min_length=2)
    """The data sets by name. A set's order depends on its name, and sample ids count through the sets as they are listed, so that
    one added at the end changes the order of none. Shares are exact where the weights fit a cycle of up to 1000 samples, else
    rounded to thousandths."""

    @field_validator("sets")
    @classmethod
    def _each_set_is_drawn(cls, sets: dict[str, MixedSetConfig]) -> dict[str, MixedSetConfig]:
        cycle_slots({name: mixed.weight for name, mixed in sets.items()})
        return sets

    @property
    def slots(self) -> dict[str, int]:
        """How many samples of each cycle come from each set."""
        return cycle_slots({name: mixed.weight for name, mixed in self.sets.items()})

    @property
    def shown(self) -> str:
        """Where the data lies, for messages."""
        return ", ".join(mixed.path for mixed in self.sets.values())


class StreamConfig(LoadingConfig):
    """Unindexed WebDataset tars, read as they come; what that cannot promise is in `vitscale.data.webdataset_stream`."""

    kind: Literal["webdataset_stream"] = "webdataset_stream"
    urls: list[str] = Field(min_length=1)
    """The shards: paths and addresses (s3, gs, az, https, http), with ranges as in shard-{0000..0099}.tar, and for paths with
    wildcards."""
    shuffle_buffer: int = Field(default=1000, ge=1)
    """Undecoded samples that each loader process holds to shuffle them; 1 reads each shard in its order."""
    classes: list[str] | None = None
    """Names of the classes in label order, for pictures; null where labels are numbers only, or there are none."""
    num_samples: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """About how many samples the shards hold: what max_lost_fraction is a share of. null: a share of the samples consumed so
    far, so that damage in the first shards stops the run."""
    num_workers: int = Field(default=1, ge=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank; 0 decodes in the training process. Another number makes other batches."""

    @field_validator("urls")
    @classmethod
    def _urls_are_accepted(cls, urls: list[str]) -> list[str]:
        problems = [problem for url in urls if (problem := url_problem(url)) is not None]
        if problems:
            raise ValueError("; ".join(problems))
        return urls

    @property
    def shown(self) -> str:
        """Where the data lies, for messages."""
        return self.urls[0] if len(self.urls) == 1 else f"{self.urls[0]} and {len(self.urls) - 1} more"


DataConfig = Annotated[ShardsConfig | MixtureConfig | StreamConfig, Field(discriminator="kind")]
