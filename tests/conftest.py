"""What every test relies on: one thread, and oracles that import on a machine without a GPU."""

import contextlib

import torch


def pytest_configure() -> None:
    """Set up the process before any test module is imported."""
    # The order of a sum must not depend on the number of cores.
    torch.set_num_threads(1)
    _declare_torchvision_operators()


def _declare_torchvision_operators() -> None:
    """Let timm and transformers import: PyPI's torchvision is built for CUDA and cannot load its operators into a CPU torch.

    Declaring the two that it looks for when imported is enough; where they did load, the declaration is refused.
    """
    if torch.version.cuda is not None:
        return
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
