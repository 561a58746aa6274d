"""Analytic FLOPs of backbones with a head, the yardstick of every throughput figure, and parameter counts of plain ViTs.

One multiply-add is 2 FLOPs and only matrix products count; activation recomputation does not (it would be hardware FLOPs).
"""

from vitscale.models.base import BackboneShape
from vitscale.models.vit import ViTShape


def forward_flops(shape: BackboneShape, *, num_classes: int = 0, pre_logits_width: int | None = None) -> int:
    """FLOPs of the forward pass of one image; `num_classes` 0 leaves out the head."""
    return shape.forward_flops + 2 * _head_weights(shape.width, num_classes, pre_logits_width)


def step_flops(shape: BackboneShape, *, num_classes: int = 0, pre_logits_width: int | None = None) -> int:
    """Model FLOPs of forward and backward of one image: 3 times the forward pass, the field's convention for MFU."""
    return 3 * forward_flops(shape, num_classes=num_classes, pre_logits_width=pre_logits_width)


def num_parameters(shape: ViTShape, *, num_classes: int = 0, pre_logits_width: int | None = None) -> int:
    """Parameters of the backbone and, where `num_classes` is not 0, of the head."""
    d, m = shape.width, shape.mlp_width
    block = 4 * d * d + 2 * d * m + 9 * d + m
    embed = shape.num_channels * shape.patch_size**2 * d + d + (d if shape.class_token else 0)
    positions = shape.num_tokens * d if shape.learned_positions else 0
    biases = (num_classes + (pre_logits_width or 0)) if num_classes else 0
    return embed + positions + shape.depth * block + 2 * d + _head_weights(d, num_classes, pre_logits_width) + biases


def _head_weights(width: int, num_classes: int, pre_logits_width: int | None) -> int:
    if not num_classes:
        return 0
    if pre_logits_width is None:
        return width * num_classes
    return width * pre_logits_width + pre_logits_width * num_classes
