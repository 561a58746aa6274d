"""What every test relies on: one thread, oracles that import without a GPU, stable names, and a collector with little to look at."""

import os
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.collector import skip_imports
from vitscale.data.images.turbojpeg import LIBRARY_VARIABLE


def pytest_configure() -> None:
    """Set up the process before any test module is imported."""
    # The order of a sum must not depend on the number of cores.
    torch.set_num_threads(1)
    # Here and in the processes that tests start: nothing of ours compiles, but DeepSpeed prepares to, for two seconds in each.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    for library in _bundled_turbojpeg():
        os.environ.setdefault(LIBRARY_VARIABLE, library)
    # An example that takes long on a busy machine is no failure.
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    if torch.__version__.endswith("+cpu") and _torchvision_is_for_cuda():
        # timm and transformers import torchvision, which looks for these two operators; declaring them is enough to import it.
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where one tier is asked for by name, files that never name it are not imported: the oracles alone take ten seconds."""
    tier = config.option.markexpr
    if not tier.isidentifier() or not collection_path.name.startswith("test_") or collection_path.suffix != ".py":
        return None
    return True if f"pytest.mark.{tier}" not in collection_path.read_text(encoding="utf-8") else None


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name byte strings by their type: parallel processes must find the same names, and gzip's output holds the time of day."""
    return "bytes" if isinstance(val, bytes) else None


def pytest_collection_finish() -> None:
    """The test modules are imported."""
    skip_imports()


def _bundled_turbojpeg() -> list[str]:
    """The libturbojpeg 3 inside the wheel of that name: for the tests, no more."""
    try:
        return [str(file.locate()) for file in files("turbojpeg") or () if file.name.startswith("libturbojpeg")]
    except PackageNotFoundError:
        return []


def _torchvision_is_for_cuda() -> bool:
    """Whether torchvision is PyPI's build, whose operators cannot be loaded beside a torch that was built for CPUs."""
    try:
        return "+" not in version("torchvision")
    except PackageNotFoundError:
        return False
