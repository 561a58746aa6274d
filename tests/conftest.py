"""What every test relies on: one thread, and oracles that import on a machine without a GPU."""

from importlib.metadata import PackageNotFoundError, version

import torch


def pytest_configure() -> None:
    """Set up the process before any test module is imported."""
    # The order of a sum must not depend on the number of cores.
    torch.set_num_threads(1)
    if torch.__version__.endswith("+cpu") and _torchvision_is_for_cuda():
        # timm and transformers import torchvision, which looks for these two operators; declaring them is enough to import it.
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _torchvision_is_for_cuda() -> bool:
    """Whether torchvision is PyPI's build, whose operators cannot be loaded beside a torch that was built for CPUs."""
    try:
        return "+" not in version("torchvision")
    except PackageNotFoundError:
        return False
