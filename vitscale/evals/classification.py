"""Top-1 and top-5 accuracy on a held-out data set, every sample counted exactly once on any number of ranks."""

# B batch, K classes

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vitscale.config import OPERATIONAL, Config, ConfigError, DataError, UserError
from vitscale.data.dataset import Dataset
from vitscale.data.images.patch_sequences import SequenceEvalTransform
from vitscale.data.images.transforms import EvalTransform, Interpolation
from vitscale.data.labels import ClassLabels, TargetReader
from vitscale.data.loader import Share, eval_loader
from vitscale.data.reader import SampleReader
from vitscale.data.types import Batch, SampleTransform
from vitscale.dist.collectives import all_reduce_sum
from vitscale.dist.ranks import Ranks
from vitscale.models import ModelConfig
from vitscale.nn.input_form import InputForm
from vitscale.objectives.base import Method
from vitscale.objectives.draws import WithDraws

T = TypeVar("T")

_PREFETCH_BATCHES = 2
_PROBED_SAMPLES = 64


class ClassificationConfig(Config):
    """Top-1 and top-5 accuracy on a held-out packed data set. Evaluating never changes what a run computes."""

    kind: Literal["classification"] = "classification"
    path: str = Field(json_schema_extra=OPERATIONAL)
    """Folder of the packed held-out data set, the one that holds manifest.json."""
    weights: Literal["model", "ema"] = Field(default="model", json_schema_extra=OPERATIONAL)
    """Which weights are evaluated: the trained ones or their moving average."""
    every_steps: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Optimizer steps between evaluations in training; null evaluates only at the end."""
    batch_size: int = Field(default=256, ge=1, json_schema_extra=OPERATIONAL)
    """Samples per rank and forward pass."""
    num_workers: int = Field(default=0, ge=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank; 0 decodes in the evaluating process."""
    labels: ClassLabels = Field(default=ClassLabels(), json_schema_extra=OPERATIONAL)
    """Where the labels are; one class per image."""
    resize: Literal["squash", "shorter_side"] = Field(default="squash", json_schema_extra=OPERATIONAL)
    """squash: both sides are resized, the aspect ratio may change. shorter_side: it is kept, and what sticks out is cut off."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1, json_schema_extra=OPERATIONAL)
    """Side of the centre crop as a fraction of the resized image's shorter side; 0.875 is the usual choice for photos."""
    interpolation: Interpolation = Field(default="bilinear", json_schema_extra=OPERATIONAL)
    """How images are resized."""
    patch_size: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Side of the patches of a model with flexible ones: any that divides the image size and is a multiple of the stem's stride. null:
    the smallest of model.flexible_patches."""
    sequence_length: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Patches of an image at most, for a model with model.naflex, which keeps the aspect ratio of the whole image. null: the largest of
    its sequence_lengths."""

    def form(self, model: ModelConfig) -> InputForm:
        """The form of the batches that `model` is evaluated on."""
        form = model.eval_form if self.patch_size is None else replace(model.eval_form, patch_size=self.patch_size)
        if self.sequence_length is None:
            return form
        assert form.sequence is not None, "the run's configuration is checked"
        return replace(form, sequence=replace(form.sequence, length=self.sequence_length))

    def form_problems(self, model: ModelConfig) -> Iterator[str]:
        """What of this is not for the form that `model` takes, each with its key and the remedy."""
        if self.patch_size is not None and (problem := model.patch_size_problem(self.patch_size)) is not None:
            yield f"patch_size: {problem}"
        is_sequence = model.eval_form.sequence is not None
        if self.sequence_length is not None and not is_sequence:
            yield f"sequence_length: {self.sequence_length} is for models with model.naflex; leave it out"
        if is_sequence and self.resize != "squash":
            yield f"resize: {self.resize} is for square images, and with model.naflex all keep their aspect ratio; leave it out"
        if is_sequence and self.crop_fraction != 1.0:
            yield f"crop_fraction: {self.crop_fraction} is for square images, and with model.naflex all are seen whole; leave it out"


class ClassificationEval:
    """One evaluation of models of one kind on an opened data set, ready to run as often as wanted.

    Raises `DataError` when the data set has no classes, or several for one image.
    """

    method: ClassVar[Method] = "predict"
    """What of an objective is evaluated."""

    def __init__(
        self, config: ClassificationConfig, *, dataset: Dataset, model: ModelConfig, ranks: Ranks, pin_memory: bool = False
    ) -> None:
        if dataset.num_classes is None:
            raise DataError(f"{config.path}: this data set has no classes, so accuracy cannot be measured; pack it with labels")
        self.config = config
        self.dataset = dataset
        self._num_classes = dataset.num_classes
        self._pin_memory = pin_memory
        self._share = Share(rank=ranks.rank, world_size=ranks.world_size, num_workers=config.num_workers, prefetch=_PREFETCH_BATCHES)
        targets = config.labels.reader()
        self._transform = _transform(config, model=model, targets=targets)
        # Now and not when the first evaluation is due, which may be after a day of training.
        for sample in SampleReader(dataset).read(0, min(_PROBED_SAMPLES, dataset.num_samples)):
            targets(sample)

    def run(self, predict: Callable[[Batch], Tensor]) -> dict[str, float]:
        """Accuracy over the whole data set: `top1`, `top5` (shares) and `num_samples`. All ranks must call this.

        `predict` makes logits (B, K) of a batch; every rank calls it equally often. With fewer than five classes `top5`
        is the share among the best K, that is 1. The result is the same for any number of ranks and any batch size.
        Raises `ConfigError` when the model has fewer outputs than the data set has classes.
        """
        top1, top5, num_samples, num_unknown = all_reduce_sum(self._count(predict)).tolist()
        assert num_samples == self.dataset.num_samples, f"counted {num_samples} of {self.dataset.num_samples} samples"
        if num_unknown:
            raise DataError(
                f"{self.config.path}: {num_unknown} samples have a label beyond the {self._num_classes} classes of the manifest;"
                " pack or index the data set again"
            )
        return {"top1": top1 / num_samples, "top5": top5 / num_samples, "num_samples": float(num_samples)}

    def results(self, predict: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
        """This rank's batches, and what is predicted of each."""
        loader = eval_loader(
            dataset=self.dataset,
            transform=self._transform,
            share=self._share,
            batch_size=self.config.batch_size,
            pin_memory=self._pin_memory,
        )
        try:
            for batch in self._readable(loader):
                yield batch, predict(batch)
        finally:
            loader.close()

    def _count(self, predict: Callable[[Batch], Tensor]) -> Tensor:
        counts: Tensor | None = None
        for batch, logits_BK in self.results(predict):
            self._check_outputs(logits_BK.shape[1])
            # The counts stay on the device: no batch waits for the one before.
            found = count_correct(logits_BK, labels_B=batch["label"].to(logits_BK.device))
            counts = found if counts is None else counts + found
        assert counts is not None, "an eval loader yields at least one batch on every rank"
        return counts

    def _readable(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; what ends them says what for they were read, since training would have replaced the sample and gone on."""
        try:
            yield from batches
        except UserError as error:
            where = f"This ended the evaluation on {self.config.path}, in which every sample counts and none is replaced."
            raise error.retold(f"{error} {where}") from error

    def _check_outputs(self, num_outputs: int) -> None:
        if num_outputs < self._num_classes:
            raise ConfigError(
                f"{self.config.path}: this data set has {self._num_classes} classes and the model {num_outputs} outputs;"
                f" set objective.num_classes to {self._num_classes} or evaluate on another data set"
            )


def _transform(config: ClassificationConfig, *, model: ModelConfig, targets: TargetReader) -> SampleTransform:
    form, channels, interpolation = config.form(model), model.num_channels, config.interpolation
    if form.sequence is not None:
        return SequenceEvalTransform(sequence=form.sequence, num_channels=channels, interpolation=interpolation, targets=targets)
    transform: SampleTransform = EvalTransform(
        image_size=model.image_size,
        num_channels=channels,
        resize=config.resize,
        crop_fraction=config.crop_fraction,
        interpolation=interpolation,
        targets=targets,
    )
    for key, mark in form.marks.items():
        transform = WithDraws(transform=transform, key=key, source=mark, image_size=model.image_size)
    return transform


def count_correct(logits_BK: Tensor, *, labels_B: Tensor) -> Tensor:
    """int64 (4,) on the logits' device: samples whose label is the best guess, is among the five best, all samples, and
    samples whose label is no class of the model. Rows with label -1 are padding and count nowhere.

    Of equal logits the lower class wins, as in argmax, so an untrained model of zeros is not right everywhere. NaN is
    ahead of every number, and a sample whose own logit is NaN is wrong.
    """
    num_classes = logits_BK.shape[1]
    is_sample_B = labels_B >= 0
    is_known_B = is_sample_B & (labels_B < num_classes)
    index_B1 = labels_B.clamp(0, num_classes - 1).unsqueeze(1)
    own_B1 = logits_BK.gather(1, index_B1)
    lower_class_BK = torch.arange(num_classes, device=logits_BK.device) < index_B1
    # "Not at most" instead of "greater": comparisons with NaN are false.
    ahead_BK = ~(logits_BK <= own_B1) | ((logits_BK == own_B1) & lower_class_BK)
    place_B = ahead_BK.sum(dim=1)
    # A NaN label logit is ahead of itself; without this it would be among the five best of few classes.
    is_scored_B = is_known_B & ~own_B1.squeeze(1).isnan()
    counted = (is_scored_B & (place_B < 1), is_scored_B & (place_B < 5), is_sample_B, is_sample_B & ~is_known_B)
    return torch.stack([mask_B.sum() for mask_B in counted])
