"""What a source offers to be packed: splits of samples in a fixed order, with all that is known before an image is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from vitscale.data.ustar import BLOCK_BYTES, padded_bytes

IntArray = npt.NDArray[np.int64]


class UnusableImageError(Exception):
    """An image of the input that cannot be packed; the message is the reason. All of them are collected and reported."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as its source stores it."""

    image: bytes
    extension: str | None = None
    """`jpg`, `png` or `webp`, as the image's name says; None where it has no name. The bytes decide."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Further members that lie beside the image, by extension."""


class Images(Protocol):
    """The images of a split, numbered from 0. Picklable."""

    def tar_bytes(self) -> IntArray:
        """The space that each image, and what lies beside it, takes in a tar: shards are cut by it."""
        ...

    def origin(self, index: int) -> str:
        """Where image `index` comes from: names it in messages and removal lists and draws the validation split."""
        ...

    def read(self, index: int) -> Record:
        """Read image `index`, unchecked. Raises `UnusableImageError` when there is nothing to read."""
        ...

    def take(self, indices: IntArray) -> Self:
        """These images only, numbered from 0: what one shard needs."""
        ...

    def identity(self) -> bytes:
        """Changes when the content may have changed: an interrupted pack of something else is not continued."""
        ...


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The class indices of each sample: exactly one, or with `offsets` any number (multi-label)."""

    values: IntArray
    offsets: IntArray | None = None
    """Sample i has `values[offsets[i]:offsets[i + 1]]`. None: sample i has `values[i]`."""

    @property
    def is_multi(self) -> bool:
        return self.offsets is not None

    def of(self, index: int) -> IntArray:
        """The class indices of one sample."""
        if self.offsets is None:
            return self.values[index : index + 1]
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def payload(self, index: int) -> bytes:
        """The member `cls`: ASCII indices separated by a space, empty for no class."""
        return b" ".join(b"%d" % value for value in self.of(index).tolist())

    def payload_bytes(self) -> IntArray:
        """Size of every `payload`."""
        digits = np.char.str_len(self.values.astype(str)).astype(np.int64)
        if self.offsets is None:
            return digits
        ends = np.concatenate(([0], np.cumsum(digits + 1)))  # each with the space after it
        sizes: IntArray = np.maximum(ends[self.offsets[1:]] - ends[self.offsets[:-1]] - 1, 0)
        return sizes

    def take(self, indices: IntArray) -> "Labels":
        if self.offsets is None:
            return Labels(values=self.values[indices])
        return multi_labels([self.of(index) for index in indices.tolist()])

    def mapped(self, new_index: IntArray) -> "Labels":
        """With `new_index[old]` for each index; those that become negative are dropped from multi-label samples only."""
        values = new_index[self.values]
        if self.offsets is None:
            return Labels(values=values)
        kept = np.concatenate(([0], np.cumsum(values >= 0)))
        return Labels(values=values[values >= 0], offsets=kept[self.offsets])


def multi_labels(lists: list[IntArray] | list[list[int]]) -> Labels:
    """Labels from the list of each sample's class indices."""
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists], dtype=np.int64)))
    values = np.concatenate([np.asarray(values, np.int64) for values in lists]) if lists else np.zeros(0, np.int64)
    return Labels(values=values, offsets=offsets)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples numbered by the source's own order, which is the same for the same input. Picklable."""

    images: Images
    numbers: IntArray
    """What each sample is called in the source; the key, where it has no own, and the shuffled order follow from it."""
    name: str | None = None
    """ "train", "test" and so on; None where the source does not tell splits apart."""
    labels: Labels | None = None
    classes: tuple[str, ...] | None = None
    """Name of each class in label order; None exactly where `labels` is."""
    has_class_names: bool = True
    """False where `classes` only repeats the numbers that the source gives instead of names."""
    captions: tuple[str | None, ...] | None = None
    keys: tuple[str, ...] | None = None
    key_prefix: str = ""
    is_sound: bool = False
    """The images are made here from pixels: there is nothing to check."""
    description: Mapping[str, str | int] = field(default_factory=dict)
    """What the manifest says about the source. No paths and no times: same input, same bytes."""
    notes: tuple[str, ...] = ()
    """What the user should know before packing, for example files that were passed over."""

    @property
    def num_samples(self) -> int:
        return len(self.numbers)

    def key(self, index: int) -> str:
        """The key under which sample `index` is packed."""
        return self.keys[index] if self.keys is not None else f"{self.key_prefix}{self.numbers[index]:09d}"

    def tar_bytes(self) -> IntArray:
        """The space that each sample takes in a tar, its image unchanged."""
        sizes = self.images.tar_bytes()
        if self.labels is not None:
            sizes = sizes + member_tar_bytes(self.labels.payload_bytes())
        if self.captions is not None:
            sizes = sizes + np.array([caption_tar_bytes(caption) for caption in self.captions], np.int64)
        return sizes

    def members(self, index: int) -> dict[str, bytes]:
        """What is packed beside the image and is known without reading it."""
        members = {} if self.labels is None else {"cls": self.labels.payload(index)}
        caption = None if self.captions is None else self.captions[index]
        return members if caption is None else {**members, "txt": caption.encode()}

    def take(self, indices: IntArray) -> "Split":
        """The same split with these samples only."""
        chosen = indices.tolist()
        return replace(
            self,
            images=self.images.take(indices),
            numbers=self.numbers[indices],
            labels=None if self.labels is None else self.labels.take(indices),
            captions=None if self.captions is None else tuple(self.captions[index] for index in chosen),
            keys=None if self.keys is None else tuple(self.keys[index] for index in chosen),
        )


def member_tar_bytes(payload_bytes: IntArray) -> IntArray:
    """The space that members of these sizes take in a tar: a header and the padded payload."""
    return BLOCK_BYTES + -(-payload_bytes // BLOCK_BYTES) * BLOCK_BYTES


def caption_tar_bytes(caption: str | None) -> int:
    """The space of one caption."""
    return 0 if caption is None else BLOCK_BYTES + padded_bytes(len(caption.encode()))


def some(names: list[str], *, num_shown: int = 5) -> str:
    """The first few of many names, and how many there are besides."""
    shown = ", ".join(names[:num_shown])
    return shown if len(names) <= num_shown else f"{shown} and {len(names) - num_shown} more"
