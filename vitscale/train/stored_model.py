"""The model that a checkpoint holds, as the configuration beside its weights says: of a trained run or of an import."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, Config, decode, parse_yaml
from vitscale.config.progress import Watch, silent
from vitscale.models import Backbone, ModelConfig
from vitscale.objectives import ObjectiveConfig, Supervised

_WHICH: dict[Kind, str] = {"weight": "weights", "ema": "moving average of the weights"}


class StoredModel(Config):
    """The sections of a run's configuration that decide what its weights mean."""

    model: ModelConfig
    """The backbone."""
    objective: ObjectiveConfig | None = None
    """Its head; null for imported weights without one."""

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without one."""
        return 0 if self.objective is None else self.objective.num_classes

    @property
    def has_pre_logits(self) -> bool:
        """Whether a layer comes before the head."""
        return self.objective is not None and self.objective.pre_logits is not None

    def build(self) -> nn.Module:
        """The objective, or without one a module that has the backbone only, on the current default device."""
        backbone = self.model.build()
        return Headless(backbone) if self.objective is None else self.objective.build(backbone)


class Headless(nn.Module):
    """A backbone under the name that it has in an objective."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone


def read_stored_model(reader: CheckpointReader) -> StoredModel:
    """The model of a checkpoint. Raises `ConfigError` where its configuration is not understood."""
    source = f"{reader.path}/config.yaml"
    values = parse_yaml(reader.config_text, source=source)
    kept = {key: values[key] for key in ("model", "objective") if key in values} if isinstance(values, dict) else values
    return decode(StoredModel, values=kept, source=source)


def check_fits(module: nn.Module, *, reader: CheckpointReader, kind: Kind) -> None:
    """Raise `CheckpointError` unless the checkpoint's names and shapes are those of `module`, which is on the meta device."""
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    stored = reader.shapes(kind)
    if not stored:
        raise CheckpointError(f"{reader.path}: holds no {_WHICH[kind]}; use the other weights")
    different = [name for name in {**wanted, **stored} if wanted.get(name) != stored.get(name)]
    if different:
        shown = "; ".join(f"{n}: {stored.get(n)} in the checkpoint, {wanted.get(n)} in the configuration" for n in different[:5])
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise CheckpointError(f"{reader.path}: holds another model than the configuration describes ({shown}{more})")


def whole_module(stored: StoredModel, *, read: Callable[[str], Tensor]) -> nn.Module:
    """The objective or the headless module with all its weights in memory, which `read` gives by name, to be evaluated."""
    with torch.device("meta"):
        module = stored.build()
    _fill(module, prefix="", read=read)
    return module.eval()


def streamed_output(stored: StoredModel, *, read: Callable[[str], Tensor], image_BCHW: Tensor, watch: Watch = silent) -> Tensor:
    """fp32 logits (B, classes) of a classifier, pooled features (B, D) of a headless model, of uint8 images (B, C, H, W).

    `read` gives the whole value of a parameter by name. One block's weights are in memory at a time, beside what is in no block.
    `watch` is told the blocks that were run.
    """
    with torch.device("meta"):
        module = stored.build()
    backbone = module.backbone
    assert isinstance(backbone, Backbone)

    def run(index: int, block: nn.Module, x_BND: Tensor, /, **context: Any) -> Tensor:
        _fill(block, prefix=f"backbone.blocks.{index}.", read=read)
        y_BND: Tensor = block(x_BND, **context)
        block.to("meta")
        report(index + 1)
        return y_BND

    backbone.block_runner = run
    _fill(module, prefix="", read=read, leave_out="backbone.blocks.")
    num_blocks = len(list(module.get_submodule("backbone.blocks").children()))
    with torch.inference_mode(), watch("running the model here, in blocks", total=num_blocks) as report:
        module.eval()
        if isinstance(module, Supervised):
            return module.predict({"image": image_BCHW})
        features: Tensor = backbone(backbone.normalise(image_BCHW)).pooled_BD
        return features


def _fill(module: nn.Module, *, prefix: str, read: Callable[[str], Tensor], leave_out: str | None = None) -> None:
    for name, _ in list(module.named_parameters()):
        if leave_out is None or not name.startswith(leave_out):
            owner, _, own_name = name.rpartition(".")
            value = read(f"{prefix}{name}")
            setattr(module.get_submodule(owner), own_name, nn.Parameter(value, requires_grad=False))
