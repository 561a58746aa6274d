"""A model as a graph of ONNX, which onnxruntime and other programs run without this one."""

# B batch, C channels, H height, W width, K classes or width of the pooled features

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.config import CheckpointError, UsageError
from vitscale.models import Backbone
from vitscale.objectives import Supervised
from vitscale.train.equality import Foreign
from vitscale.train.stored_model import StoredModel, whole_module
from vitscale.train.weight_files import StoredWeights, WeightFiles
from vitscale.weights.installed import onnxruntime_from_file
from vitscale.weights.rules import HeldConfig, Layout

_GRAPH = "model.onnx"
_WEIGHTS = "model.onnx.data"
"""Beside the graph, where they are too large to be in it."""

_INPUT = "pixel_values"
_NEEDED = ("onnx", "onnxscript")
_TRACED_IMAGES = 3
"""Other than one, which would be taken for a constant, and than the number of images on which the graph is compared."""
_MAX_FILE_BYTES = 1 << 30
"""Of weights inside the graph. A file of protobuf holds less than 2 GiB, and torch puts them beside it from 1.5 GiB on, tables included."""
_COPIES = 4
"""Of weights inside the graph: in the model and its graph, in the message, in its bytes."""
_COPIES_BESIDE = 3
"""Of weights beside it: in the model, and twice in the program that is compared."""


def plan_graph_file(
    weights: StoredWeights, *, stored: StoredModel, layout: Layout, model: HeldConfig, metadata: Mapping[str, str]
) -> WeightFiles:
    """The graph of a model, with `metadata` in it. Raises `UsageError` unless what torch's exporter needs is installed."""
    _check_exporter()
    num_bytes = weights.num_bytes
    is_split = num_bytes > _MAX_FILE_BYTES
    copies = _COPIES_BESIDE if is_split else _COPIES
    return WeightFiles(
        names=(_GRAPH, _WEIGHTS) if is_split else (_GRAPH,),
        older_names=() if is_split else (_WEIGHTS,),
        shapes=weights.shapes,
        memory_bytes=copies * num_bytes,
        held=f"the whole model in {copies} copies, of which a graph is made,",
        library="onnxruntime",
        write=partial(_write, stored=stored, read=weights.read, metadata=metadata, is_split=is_split),
        foreign=lambda path: Foreign(
            layout=layout,
            model=model,
            shapes=weights.shapes,
            read=weights.read,
            library="onnxruntime",
            load=partial(onnxruntime_from_file, path),
        ),
        interface=_interface(stored, model),
    )


def _check_exporter() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--layout onnx needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: pip install"
            " 'vitscale[onnx]', which also brings onnxruntime, in which the graph is compared with the model; or take another layout"
        )


def _interface(stored: StoredModel, model: HeldConfig) -> tuple[str, ...]:
    channels, side = model.num_channels, model.image_size
    mean, std = (", ".join(repr(value) for value in values) for values in (model.image_mean, model.image_std))
    return (
        f"{_INPUT}: float32 (batch, {channels}, {side}, {side}), any number of images; from pixels of 0 to 255:"
        f" (pixel / 255 - mean) / deviation, with mean {mean} and deviation {std}",
        f"{_output_name(stored)}: float32 (batch, {stored.num_classes or 'width'})",
    )


def _write(
    path: Path,
    report: Callable[[int], None],
    *,
    stored: StoredModel,
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    is_split: bool,
) -> None:
    """Returns when the files are on disk. Raises `CheckpointError` where torch cannot make a graph of the model."""
    program = _program(stored, read=read)
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=is_split)
    assert path.with_name(_WEIGHTS).exists() == is_split
    written = 0
    for name in (_GRAPH, _WEIGHTS)[: 1 + is_split]:
        with path.with_name(name).open("rb") as file:
            os.fsync(file.fileno())
            written += os.fstat(file.fileno()).st_size
    report(written)


def _program(stored: StoredModel, *, read: Callable[[str], Tensor]) -> torch.onnx.ONNXProgram:
    module = _FromNormalised(whole_module(stored, read=read))
    shape = stored.model.shape
    images_BCHW = torch.zeros(_TRACED_IMAGES, shape.num_channels, shape.image_size, shape.image_size)
    with torch.no_grad(), _quiet():
        # Tables that modules keep from their first call are made of real numbers here: the exporter's have no values, and would stay.
        module(images_BCHW)
        try:
            program = torch.onnx.export(
                module,
                (images_BCHW,),
                input_names=[_INPUT],
                output_names=[_output_name(stored)],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # its own errors, and whatever its passes over the graph raise
            raise CheckpointError(f"torch's exporter makes no graph of this model: {_reason(error)}; take another layout") from error
    assert program is not None, "what the exporter by dynamo gives"
    _forget_sources(program)
    return program


def _forget_sources(program: torch.onnx.ONNXProgram) -> None:
    """Take out what the exporter notes for its debugging: paths and lines of the programs on this machine, larger than a small graph."""
    for graph in program.model.graphs():
        for part in (graph, *graph.inputs, *graph.initializers.values(), *graph):
            part.metadata_props.clear()
        for node in graph:
            for value in node.outputs:
                value.metadata_props.clear()


class _FromNormalised(nn.Module):
    """Normalised images (B, C, H, W) to fp32 logits or pooled features (B, K)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image_BCHW: Tensor) -> Tensor:
        backbone = self.module.backbone
        assert isinstance(backbone, Backbone)
        features = backbone(image_BCHW)
        if isinstance(self.module, Supervised):
            return self.module.logits(features)
        pooled_BD: Tensor = features.pooled_BD
        return pooled_BD


def _output_name(stored: StoredModel) -> str:
    return "logits" if stored.num_classes else "features"


def _reason(error: BaseException) -> str:
    """The first line of what it was caused by: its own text is advice on debugging the exporter."""
    cause: Any = error.__cause__ or error
    line = str(cause).strip().partition("\n")[0].removesuffix("See the stack trace for more information.")
    return f"{type(cause).__name__}: {line.rstrip('. ')}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own doings: what fails is raised, and the graph is compared."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
