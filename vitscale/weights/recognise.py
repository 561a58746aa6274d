"""What a foreign file is: whose layout it has, which model it holds, and what in it is no part of the model."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.weights.family import Described, Entry, Family
from vitscale.weights.forms import Shape
from vitscale.weights.google_files import GOOGLE
from vitscale.weights.hf_clip_files import HF_CLIP
from vitscale.weights.hf_dinov3_files import HF_DINOV3
from vitscale.weights.hf_files import HF
from vitscale.weights.hiera_files import TIMM_HIERA
from vitscale.weights.open_clip_files import OPEN_CLIP
from vitscale.weights.sources import WeightSource
from vitscale.weights.swin_files import HF_SWIN, TIMM_SWIN
from vitscale.weights.timm_files import TIMM
from vitscale.weights.timm_kin_files import TIMM_KIN

FAMILIES: tuple[Family, ...] = (GOOGLE, OPEN_CLIP, HF_CLIP, HF_SWIN, HF_DINOV3, HF, TIMM_SWIN, TIMM_HIERA, TIMM_KIN, TIMM)

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
"""What programs put before every name."""

_SET_ASIDE = ("*mask_token", "decoder_*", "decoder.*", "*.pooler.dense.*", "text_model.*", "logit_scale", "logit_bias", "*.position_ids")
"""Names of what serves pre-training or another modality only, as patterns of fnmatch."""

_OTHERS = {
    r"^visual\.(layer1|attnpool|trunk)\.": "a tower of CLIP that is no plain ViT",
    r"rel_pos_[hw]": "a model with decomposed relative positions, such as SAM or ViTDet",
    r"rope\.freqs$": "a model with mixed rotary positions",
    r"^layer[1-4]\.\d+\.conv|^conv1\.weight": "a convolutional network",
    r"^stages\.|^blocks\.\d+\.\d+\.conv": "a convolutional or hierarchical network",
}
"""What names give away of architectures that this model does not have."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A foreign model. `shapes` and `read` use the layout's own names, `set_aside` are names in the file of what is no part
    of the model. `described` is the model in our terms."""

    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor] = field(repr=False)
    set_aside: tuple[str, ...]
    described: Described


def recognise(source: WeightSource, *, drop: Sequence[str] = ()) -> Recognised:
    """The model in `source`; names that match a pattern of `drop` (fnmatch) count as no part of it.

    Raises `CheckpointError` where the names are of no known layout, or a tensor that the model is read off is missing.
    """
    unwrapped = _unwrap(source.shapes)
    shapes = {name: source.shapes[theirs] for name, theirs in unwrapped.items()}
    family = next((family for family in FAMILIES if family.claims(shapes)), None)
    if family is None:
        raise CheckpointError(
            f"{source.path}: its names are none of vit_jax's, big_vision's, timm's, open_clip's or Hugging Face's ViT"
            f"{explain_names(shapes)}; it holds {len(shapes)} tensors, such as {', '.join(list(shapes)[:4])}"
        )
    entries = {name: entry for name, entry in family.entries(shapes).items() if not _matches(name, drop)}
    described = _describe(family, shapes={name: entry.shape for name, entry in entries.items()}, source=source)
    kept = {name: entry for name, entry in entries.items() if not _matches(name, (*_SET_ASIDE, *described.set_aside))}
    used = {entry.source for entry in kept.values()}
    return Recognised(
        shapes={name: entry.shape for name, entry in kept.items()},
        read=_Reader(source, entries=kept, names=unwrapped),
        set_aside=tuple(theirs for name, theirs in unwrapped.items() if name not in used),
        described=described,
    )


def _describe(family: Family, *, shapes: Mapping[str, Shape], source: WeightSource) -> Described:
    try:
        return family.describe(shapes, settings=source.settings, where=str(source.path))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if not source.settings:
            raise  # the shapes are checked where they are used
        files = " or ".join(source.settings)
        raise CheckpointError(
            f"{source.path}: {files} holds a value of another type than its project writes ({error}); take the file as it was published"
        ) from error


def explain_names(names: Iterable[str]) -> str:
    """What architectures the names give away, as the continuation of a sentence; empty where they do not."""
    names = list(names)
    found = [kind for pattern, kind in _OTHERS.items() if any(re.search(pattern, name) for name in names)]
    return f" (it looks like {' and '.join(found)})" if found else ""


class _Reader:
    """Reads by the layout's names. The blocks that a file has stacked are read at once, and the last stack is kept."""

    def __init__(self, source: WeightSource, *, entries: Mapping[str, Entry], names: Mapping[str, str]) -> None:
        self._source = source
        self._entries = entries
        self._names = names
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry.rows is not None:
            return self._source.read(self._names[entry.source])[slice(*entry.rows)]
        if entry.index is None:
            return self._source.read(self._names[entry.source])
        if self._last is None or self._last[0] != entry.source:
            self._last = None
            self._last = (entry.source, self._source.read(self._names[entry.source]))
        return self._last[1][entry.index]


def _unwrap(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The names without what stands before all of them, each with the name in the file."""
    names = {name: name for name in shapes}
    while wrapper := next((wrapper for wrapper in _WRAPPERS if names and all(name.startswith(wrapper) for name in names)), None):
        names = {name.removeprefix(wrapper): theirs for name, theirs in names.items()}
    return names


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
