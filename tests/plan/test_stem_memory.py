"""What stems keep for backward, against what autograd keeps."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViTConfig
from vitscale.nn.init import materialise
from vitscale.nn.stem import StemShape
from vitscale.plan.memory import ModelSize, estimate_memory
from vitscale.run_config import RecomputeMode

BATCH = 2


@pytest.mark.parametrize(
    "stem",
    [
        {"kind": "resnet", "units": (2, 1), "width": 32},
        {"kind": "convolutions", "widths": (16, 32), "strides": (2, 2)},
    ],
)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_what_a_stem_keeps_for_backward_is_what_is_counted(stem: dict, recompute: RecomputeMode) -> None:
    config = ViTConfig.model_validate({"variant": "mu/8", "image_size": 64, "stem": stem})
    model, shape = materialise(config.build(), seed=0), config.shape.stem
    apply_recompute(model, mode=recompute, every=1)
    kept = kept_bytes(partial(model.stem, torch.randn(BATCH, 3, 64, 64)), module=model.stem)
    estimated = activations(config, shape, recompute=recompute) - activations(config, None, recompute=recompute)
    # Patches are a copy of the features, and the unit that is recomputed is not kept before that.
    later = BATCH * 4 * shape.result_elements + (0 if recompute == "none" else live_bytes(shape))
    assert estimated - later == pytest.approx(kept, rel=0.05)


def activations(config: ViTConfig, stem: StemShape | None, *, recompute: RecomputeMode) -> int:
    """The estimate for the model with a stem of that shape."""
    return estimate_memory(
        ModelSize(num_parameters=0, blocks=config.shape.blocks, stem=stem),
        world_size=1,
        zero_stage=1,
        precision="fp32",
        micro_batch=BATCH,
        recompute=recompute,
        recompute_every=1,
        ema=False,
        offload_optimizer=False,
        device="cpu",
    ).activations


def live_bytes(shape: StemShape) -> int:
    """Bytes of the largest unit in fp32, while it is recomputed."""
    units = [4 * (unit.input_elements + unit.convolved_elements + unit.activated_elements) + unit.index_bytes for unit in shape.units]
    return BATCH * max(units) + max(8 * unit.standardised_elements for unit in shape.units)


def kept_bytes(forward: Callable[[], torch.Tensor], *, module: torch.nn.Module) -> int:
    """What autograd keeps of a forward pass, but for parameters."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
