"""Our ViT with its head as the candidate of a side-by-side train-step benchmark against other libraries' models.

From the folder of a harness that alternates the models in one process and adds the same loss and optimizer to each:

    PYTHONPATH=<this checkout> python bench.py --model Ti/16 --arms timm,timm,cand --candidate benchmarks.step:candidate \
        --batch 8 --threads 1 --clock cpu --rounds 7

The second `timm` arm shows the noise of the machine.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.models import Backbone, ViTConfig
from vitscale.nn.head import ClassificationHead
from vitscale.nn.init import materialise


class Classifier(nn.Module):
    """Normalised images to logits: what the supervised objective computes, without its loss."""

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ClassificationHead(width=backbone.width, num_classes=num_classes, pre_logits_width=None, bias_init=0.0)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K)."""
        logits_BK: Tensor = self.head(self.backbone(image_BCHW).pooled_BD)
        return logits_BK


def candidate(spec: Mapping[str, Any]) -> nn.Module:
    """The model of the harness's spec: width, depth, heads, mlp, patch, img, chans, classes, cls."""
    config = ViTConfig(
        image_size=spec["img"],
        patch_size=spec["patch"],
        num_channels=spec["chans"],
        width=spec["width"],
        depth=spec["depth"],
        mlp_width=spec["mlp"],
        num_heads=spec["heads"],
        pooling="cls" if spec["cls"] else "mean",
    )
    with torch.device("meta"):
        classifier = Classifier(config.build(), num_classes=spec["classes"])
    return materialise(classifier, seed=0)
