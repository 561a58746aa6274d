"""Supervised classification: softmax or sigmoid cross-entropy on a backbone with a linear head, with random erasing, mixup and cutmix."""

# B batch, K classes

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from vitscale.config import Config
from vitscale.data.images.patch_sequences import image_transform
from vitscale.data.images.transforms import AugmentConfig
from vitscale.data.labels import ClassLabels, LabelsConfig
from vitscale.data.types import Batch, InputSpec, SampleTransform
from vitscale.models import Backbone, BackboneShape, Draws, Features
from vitscale.models.flops import step_flops
from vitscale.nn.head import ClassificationHead
from vitscale.objectives.base import Objective, Spending, StepOutput
from vitscale.objectives.draws import WithDraws
from vitscale.objectives.erasing import ERASE_KEY, ErasingConfig, erase_images
from vitscale.objectives.mixing import MIX_KEY, Mixing, mix_images, mix_targets, own_label_shares

Loss = Literal["softmax", "sigmoid"]


class SupervisedConfig(Config):
    """Classification with one label per image, or any number of them."""

    kind: Literal["supervised"] = "supervised"
    num_classes: int = Field(ge=1)
    """Outputs of the head; the data set has at most as many classes."""
    loss: Loss = "softmax"
    """softmax: cross-entropy. sigmoid: one binary cross-entropy per class, summed over the classes (the JFT recipe)."""
    labels: LabelsConfig = ClassLabels()
    """Where the labels are, and whether an image has one (class) or any number of them (multi, for the sigmoid loss only)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target that is spread evenly over all classes; for softmax only."""
    mixup_alpha: float = Field(default=0.0, ge=0.0)
    """Mixup of sample pairs with a share drawn from Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: float = Field(default=0.0, ge=0.0)
    """Cutmix of sample pairs with an area drawn from Beta(alpha, alpha); 0 is off. With mixup on as well, each is taken
    half of the time."""
    mix_probability: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the pairs that are mixed, where an alpha is above 0."""
    pre_logits: int | None = Field(default=None, ge=1)
    """Width of a linear layer with tanh before the last one; null has none."""
    head_bias_init: float | None = None
    """Where the head's biases start. null: 0 for softmax; -log(num_classes) for sigmoid, so that every class starts near
    its prior and the first steps are not spent on it."""
    augment: AugmentConfig = AugmentConfig()
    """Random crop, flip and changes of colour and geometry."""
    erasing: ErasingConfig | None = None
    """Random erasing; null is off."""

    @field_validator("labels")
    @classmethod
    def _several_labels_are_for_sigmoid(cls, value: LabelsConfig, info: ValidationInfo) -> LabelsConfig:
        if value.kind == "multi" and info.data.get("loss") == "softmax":
            raise ValueError("kind multi needs the sigmoid loss: softmax gives each image one class; set objective.loss to sigmoid")
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_is_for_softmax(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("loss") == "sigmoid":
            raise ValueError("has no effect on the sigmoid loss; set it to 0 or objective.loss to softmax")
        return value

    @field_validator("mix_probability")
    @classmethod
    def _something_is_mixed(cls, value: float, info: ValidationInfo) -> float:
        if value != 1.0 and info.data.get("mixup_alpha") == 0.0 and info.data.get("cutmix_alpha") == 0.0:
            raise ValueError("has no effect without mixup or cutmix; set objective.mixup_alpha or objective.cutmix_alpha")
        return value

    @property
    def mixing(self) -> Mixing:
        """How samples are mixed."""
        return Mixing(mixup_alpha=self.mixup_alpha, cutmix_alpha=self.cutmix_alpha, probability=self.mix_probability)

    @property
    def micro_batch_multiple(self) -> int:
        """The number that every micro-batch must be a multiple of: samples are mixed in pairs."""
        return 2 if self.mixing.is_on else 1

    @property
    def initial_head_bias(self) -> float:
        """`head_bias_init` with its default filled in."""
        if self.head_bias_init is not None:
            return self.head_bias_init
        return 0.0 if self.loss == "softmax" else -math.log(self.num_classes)

    def step_flops(self, shape: BackboneShape) -> int:
        """Model FLOPs of forward and backward of one image, head included."""
        return step_flops(shape, num_classes=self.num_classes, pre_logits_width=self.pre_logits)

    def sample_transform(self, inputs: InputSpec) -> SampleTransform:
        """What the loader's workers do to a training sample."""
        transform = image_transform(inputs, augment=self.augment, targets=self.labels.reader(num_classes=self.num_classes))
        if self.erasing is not None:
            transform = WithDraws(transform=transform, key=ERASE_KEY, source=self.erasing, image_size=inputs.image_size)
        if self.mixing.is_on:
            transform = WithDraws(transform=transform, key=MIX_KEY, source=self.mixing, image_size=inputs.image_size)
        for key, source in inputs.draws.items():
            transform = WithDraws(transform=transform, key=key, source=source, image_size=inputs.image_size)
        return transform

    def build(self, backbone: Backbone) -> "Supervised":
        """The objective around a backbone, its head on the current default device."""
        return Supervised(backbone, config=self)


class Supervised(Objective):
    """Cross-entropy of a linear head. Metric `train_top1`: share of samples whose largest logit is the label, one of several
    labels, or where samples are mixed a label with the largest share.

    A distillation token has a head of its own (Touvron et al. 2021). Without a teacher both learn the label: the loss is the mean of
    theirs, and what is predicted the mean of their logits.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, *, config: SupervisedConfig) -> None:
        super().__init__()
        drawn_keys = ({ERASE_KEY} if config.erasing is not None else set()) | ({MIX_KEY} if config.mixing.is_on else set())
        self.label_key = "labels" if config.labels.kind == "multi" else "label"
        self.batch_keys = frozenset({"image", self.label_key} | drawn_keys | backbone.draw_keys | backbone.form_keys)
        self.num_classes = config.num_classes
        self.loss = config.loss
        self.label_smoothing = config.label_smoothing
        self.is_mixing = config.mixing.is_on
        self.erase_fill = None if config.erasing is None else config.erasing.fill
        self.backbone = backbone
        self.head = self._new_head(config)
        self.head_dist = self._new_head(config) if backbone.is_distilled else None

    def forward(self, batch: Batch, step: int) -> StepOutput:  # noqa: ARG002  (the same at every step)
        """Loss in fp32. Raises `ValueError` for an odd number of samples where they are mixed."""
        image_BCHW, target = self.backbone.normalise(batch["image"]), batch[self.label_key]
        if self.erase_fill is not None:
            image_BCHW = erase_images(image_BCHW, batch[ERASE_KEY], fill=self.erase_fill)
        draws = {key: batch[key] for key in self.backbone.draw_keys | self.backbone.form_keys} or None
        if not self.is_mixing:
            return self._output(self.backbone(image_BCHW, draws=draws), target=target)
        height, width = image_BCHW.shape[2:]
        own_share_B = own_label_shares(batch[MIX_KEY], height=height, width=width)
        target_BK = mix_targets(target, own_share_B, num_classes=self.num_classes)
        return self._output(self.backbone(mix_images(image_BCHW, batch[MIX_KEY]), draws=draws), target=target_BK)

    def predict(self, batch: Batch) -> Tensor:
        """fp32 logits (B, K) of `batch["image"]`, uint8 (B, C, H, W); nothing is dropped. Images of a batch that does not say which form
        they have are of one size, cut into the model's own patches."""
        return self.logits(self._evaluated(batch))

    def logits(self, features: Features) -> Tensor:
        """fp32 logits (B, K) of what the backbone makes of images: the mean over the heads."""
        return _mean(self._heads(features))

    def spend(self, batch: Batch) -> Spending:
        """What `predict` gives, and how many tokens each block computed of each image."""
        features = self._evaluated(batch)
        assert features.tokens_BL is not None, "asked of models that halt only"
        return Spending(self.logits(features), features.tokens_BL)

    def _evaluated(self, batch: Batch) -> Features:
        form = {key: batch[key] for key in self.backbone.form_keys & batch.keys()} or None
        features: Features = self.backbone(self.backbone.normalise(batch["image"]), draws=form)
        return features

    def _new_head(self, config: SupervisedConfig) -> ClassificationHead:
        return ClassificationHead(
            width=self.backbone.width,
            num_classes=config.num_classes,
            pre_logits_width=config.pre_logits,
            bias_init=config.initial_head_bias,
        )

    def _logits(self, image_BCHW: Tensor, *, draws: Draws | None) -> list[Tensor]:
        """fp32 logits (B, K) of each head."""
        return self._heads(self.backbone(image_BCHW, draws=draws))

    def _heads(self, features: Features) -> list[Tensor]:
        logits = [self.head(features.pooled_BD).float()]
        if self.head_dist is not None:
            logits.append(self.head_dist(features.distilled_BD).float())
        return logits

    def _output(self, features: Features, *, target: Tensor) -> StepOutput:
        logits = self._heads(features)
        loss = _mean([self._cross_entropy(logits_BK, target) for logits_BK in logits])
        metrics = {"train_top1": is_right(_mean(logits).detach(), target).float().mean()}
        if features.loss_B is not None:
            added = features.loss_B.mean()
            loss, metrics["backbone_loss"] = loss + added, added.detach()
        if features.tokens_BL is not None:
            metrics["tokens_per_block"] = features.tokens_BL.float().mean()
        return StepOutput(loss=loss, metrics=metrics)

    def _cross_entropy(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """`target` is a label (B,) or a share of every class (B, K)."""
        if self.loss == "softmax":
            return F.cross_entropy(logits_BK, target, label_smoothing=self.label_smoothing)
        target_BK = target if target.ndim == 2 else F.one_hot(target, self.num_classes)
        sum_over_all = F.binary_cross_entropy_with_logits(logits_BK, target_BK.to(torch.float32), reduction="sum")
        return sum_over_all / logits_BK.shape[0]


def _mean(values: list[Tensor]) -> Tensor:
    """The mean over the heads; with one, its own value to the bit."""
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)


def is_right(logits_BK: Tensor, target: Tensor) -> Tensor:
    """Boolean (B,): whether the largest logit is the label (B,), or one with the largest share of the target (B, K); a sample
    without labels is never right."""
    guess_B = logits_BK.argmax(dim=1)
    if target.ndim == 1:
        return guess_B == target
    share_B = target.gather(1, guess_B.unsqueeze(1)).squeeze(1)
    return (share_B > 0) & (share_B == target.amax(dim=1))
