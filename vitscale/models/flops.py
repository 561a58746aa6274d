"""Analytic FLOPs of backbones with a head, the yardstick of every throughput figure.

One multiply-add is 2 FLOPs and only matrix products count; activation recomputation does not (it would be hardware FLOPs).
"""

from vitscale.models.base import BackboneShape


def forward_flops(shape: BackboneShape, *, num_classes: int = 0, pre_logits_width: int | None = None) -> int:
    """FLOPs of the forward pass of one image; `num_classes` 0 leaves out the head. A distilled model has two."""
    num_heads = 2 if shape.is_distilled else 1
    return shape.forward_flops + 2 * num_heads * _head_weights(shape.width, num_classes, pre_logits_width)


def step_flops(shape: BackboneShape, *, num_classes: int = 0, pre_logits_width: int | None = None) -> int:
    """Model FLOPs of forward and backward of one image: 3 times the forward pass, the field's convention for MFU."""
    return 3 * forward_flops(shape, num_classes=num_classes, pre_logits_width=pre_logits_width)


def _head_weights(width: int, num_classes: int, pre_logits_width: int | None) -> int:
    if not num_classes:
        return 0
    if pre_logits_width is None:
        return width * num_classes
    return width * pre_logits_width + pre_logits_width * num_classes
