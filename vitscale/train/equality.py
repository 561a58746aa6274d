"""Whether a model here and the same weights elsewhere compute the same: both are run on one image and compared."""

# B batch, C channels, H height, W width

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.config.progress import Watch, format_size, silent
from vitscale.dist.seeding import counter_key
from vitscale.models import ViTConfig
from vitscale.nn.preprocess import Normaliser
from vitscale.train.stored_model import StoredModel, streamed_output
from vitscale.weights.forms import Shape
from vitscale.weights.installed import NotUsable
from vitscale.weights.names import split_block
from vitscale.weights.reference import ReferenceSettings, has_formulas, reference_output
from vitscale.weights.rules import HeldConfig, Layout

DEFAULT_TOLERANCE = 1e-5
"""Largest difference of two logits, as a share of the largest logit: fp32 sums in another order differ by some
1e-6; a wrong GELU by 1e-5 to 1e-3."""

_NUM_IMAGES = 2
_HEAD = re.compile(r"(head|head_dist|pre_logits|classifier|cls_classifier|distillation_classifier)[./]|visual\.proj$")
"""Names of what comes after pooling."""
_COPIES = 3
"""What loading in another library holds at a time: the tensors read, the module, and what it makes of them."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The weights in another project's layout: names and shapes, how to read one, the model as that project computes it, and its
    own library's loader with what to call it. `load` gives a function from normalised images to logits, or to pooled features of a
    model without a head, and raises `NotUsable`."""

    layout: Layout
    model: HeldConfig
    shapes: dict[str, Shape]
    read: Callable[[str], Tensor]
    library: str
    differences: tuple[str, ...] = ()
    """What its programs do otherwise than the model, and no file can tell them."""
    load: Callable[[], Callable[[Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The largest difference to one yardstick, beside the largest output; `skipped` says why there is none."""

    against: str
    max_abs_delta: float = math.nan
    max_abs_output: float = math.nan
    quantity: Literal["logits", "features"] = "logits"
    skipped: str | None = None

    def within(self, tolerance: float) -> bool:
        """Whether it was made and is small enough. NaN never is."""
        return self.skipped is not None or self.max_abs_delta == 0 or self.max_abs_delta <= tolerance * self.max_abs_output

    def describe(self) -> str:
        """One line."""
        if self.skipped is not None:
            return f"against {self.against}: not run: {self.skipped}"
        delta = f"max |delta {self.quantity}| = {self.max_abs_delta:.3g}"
        return f"against {self.against}: {delta}, largest |{self.quantity[:-1]}| {self.max_abs_output:.3g}"


def planned_comparisons(
    layout: Layout, *, library: str, model: HeldConfig, shapes: Mapping[str, Shape], max_memory_bytes: int, tolerance: float, where: str
) -> tuple[Comparison, ...]:
    """The comparisons to be made, without figures, as far as can be told before a tensor is read.

    Raises `CheckpointError` as `compare` does where none can be made.
    """
    why = _too_large(shapes, max_memory_bytes=max_memory_bytes)
    if why is None and importlib.util.find_spec(library) is None:
        why = f"{library} is not installed"
    planned = [Comparison(against=library, skipped=why)]
    if has_formulas(layout) and isinstance(model, ViTConfig):
        planned.insert(0, Comparison(against=f"the formulas of {layout}"))
    _refuse_none(planned, layout=layout, library=library, tolerance=tolerance, where=where)
    return tuple(planned)


def compare(
    stored: StoredModel,
    *,
    read: Callable[[str], Tensor],
    foreign: Foreign,
    max_memory_bytes: int,
    tolerance: float,
    where: str,
    watch: Watch = silent,
) -> tuple[Comparison, ...]:
    """Run our model on weights that `read` gives by our names, and the foreign ones by their project's formulas, where they are written
    down here, and in its own library, where it is installed and both fit the memory.

    Raises `CheckpointError` when an output differs by more than `tolerance`, or neither could be run (unless it is infinite).
    """
    model = foreign.model
    images_BCHW = _images(model.num_channels, side=model.image_size)
    ours = streamed_output(stored, read=read, image_BCHW=images_BCHW, watch=watch)
    normalised_BCHW = Normaliser(mean=model.image_mean, std=model.image_std)(images_BCHW, dtype=torch.float32)
    with watch(f"running {foreign.library}", total=1) as report:
        made = [_with_library(foreign, ours=ours, image_BCHW=normalised_BCHW, max_memory_bytes=max_memory_bytes, where=where)]
        report(1)
    if has_formulas(foreign.layout) and isinstance(model, ViTConfig):
        with torch.inference_mode():
            theirs = _by_formulas(foreign, model=model, image_BCHW=normalised_BCHW, watch=watch)
        made.insert(0, _difference(f"the formulas of {foreign.layout}", ours=ours, theirs=theirs))
        if stored.objective is not None and bool((ours == ours[:1]).all()):
            # A head of zeros gives every image the same logits, which says nothing of what comes before it.
            made.append(_of_features(stored, read=read, foreign=foreign, images_BCHW=images_BCHW))
    if stored.objective is None:
        made = [replace(comparison, quantity="features") for comparison in made]
    _refuse_none(made, layout=foreign.layout, library=foreign.library, tolerance=tolerance, where=where)
    bad = [comparison for comparison in made if not comparison.within(tolerance)]
    if bad:
        raise CheckpointError(
            f"{where}: the same image gives other outputs ({'; '.join(comparison.describe() for comparison in bad)}; accepted:"
            f" {tolerance:g} of the largest). {_cause(foreign)}, or accept the difference with --tolerance"
        )
    return tuple(made)


def _refuse_none(comparisons: Sequence[Comparison], *, layout: Layout, library: str, tolerance: float, where: str) -> None:
    if all(comparison.skipped for comparison in comparisons) and not math.isinf(tolerance):
        why = "; ".join(comparison.describe() for comparison in comparisons)
        raise CheckpointError(
            f"{where}: nothing could be compared ({why}), and the formulas of {layout} are not written down"
            f" here. Install {library}, give more --max-memory, or go without with --tolerance inf"
        )


def _too_large(shapes: Mapping[str, Shape], *, max_memory_bytes: int) -> str | None:
    needed = _COPIES * 4 * sum(math.prod(shape) for shape in shapes.values())
    if needed <= max_memory_bytes:
        return None
    return f"loading the model takes about {format_size(needed)}, more than --max-memory"


def _cause(foreign: Foreign) -> str:
    if foreign.differences:
        return f"In the layout {foreign.layout} {'; '.join(foreign.differences)}: train with the same, take another layout"
    if foreign.layout == "onnx":
        return "torch's exporter, or onnxruntime, makes another function of this model: try other versions of them"
    return (
        "The weights are read as another model than they are of, most often another GELU, epsilon or number of heads: give it as"
        " model.KEY=VALUE where this is an import"
    )


def _of_features(stored: StoredModel, *, read: Callable[[str], Tensor], foreign: Foreign, images_BCHW: Tensor) -> Comparison:
    """What is pooled before the head."""
    assert isinstance(foreign.model, ViTConfig), "whose formulas are written down"
    backbone = stored.model_copy(update={"objective": None})
    shapes = {name: shape for name, shape in foreign.shapes.items() if not _HEAD.match(name)}
    normalised_BCHW = Normaliser(mean=foreign.model.image_mean, std=foreign.model.image_std)(images_BCHW, dtype=torch.float32)
    with torch.inference_mode():
        theirs = _by_formulas(replace(foreign, shapes=shapes), model=foreign.model, image_BCHW=normalised_BCHW)
    ours = streamed_output(backbone, read=read, image_BCHW=images_BCHW)
    return replace(_difference(f"the formulas of {foreign.layout}", ours=ours, theirs=theirs), quantity="features")


def _by_formulas(foreign: Foreign, *, model: ViTConfig, image_BCHW: Tensor, watch: Watch = silent) -> Tensor:
    settings = ReferenceSettings(
        layout=foreign.layout,
        depth=model.shape.depth,
        num_heads=model.shape.num_heads,
        gelu=model.gelu,
        layer_norm_eps=model.layer_norm_eps,
        pooling=model.pooling,
    )
    begun: set[str] = set()

    def read(name: str) -> Tensor:
        begun.add(split_block(name)[1])
        report(min(len(begun - {""}), model.shape.depth))
        return foreign.read(name)

    with watch(f"running the formulas of {foreign.layout}, in blocks", total=model.shape.depth) as report:
        return reference_output(image_BCHW, settings=settings, names=foreign.shapes, read=read)


def _with_library(foreign: Foreign, *, ours: Tensor, image_BCHW: Tensor, max_memory_bytes: int, where: str) -> Comparison:
    why = _too_large(foreign.shapes, max_memory_bytes=max_memory_bytes)
    if why is not None:
        return Comparison(against=foreign.library, skipped=why)
    try:
        theirs = foreign.load()(image_BCHW)
    except NotUsable as error:
        return Comparison(against=foreign.library, skipped=str(error))
    except ImportError as error:  # parts of it are imported when they are asked for, and may not fit the rest of the installation
        reason = str(error).strip().partition("\n")[0]
        return Comparison(against=foreign.library, skipped=f"its model cannot be imported here ({reason})")
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:  # what its loader raises for a file it cannot hold
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{where}: {foreign.library} cannot load these weights: {type(error).__name__}: {reason}") from error
    return _difference(foreign.library, ours=ours, theirs=theirs)


def _difference(against: str, *, ours: Tensor, theirs: Tensor) -> Comparison:
    if ours.shape != theirs.shape:
        return Comparison(against=against)
    return Comparison(against=against, max_abs_delta=float((ours - theirs).abs().max()), max_abs_output=float(theirs.abs().max()))


def _images(num_channels: int, *, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(counter_key(0, "comparison of models") >> 1)
    return torch.randint(0, 256, (_NUM_IMAGES, num_channels, side, side), dtype=torch.uint8, generator=generator)
