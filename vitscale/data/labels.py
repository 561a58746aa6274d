"""Where the target of a sample comes from: one class, any number of classes, or a caption, out of its text or JSON member."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from vitscale.config import Config, DataError
from vitscale.data.types import RawSample, SampleFields

LABEL_MEMBER = "cls"
CAPTION_MEMBER = "txt"
_JSON_MEMBER = "json"
_LONGEST_LABEL = 18  # digits that surely fit int64
_SHOWN_CHARACTERS = 40


class TargetReader(Protocol):
    """Reads what a sample is to be recognised as into batch fields. Picklable.

    Raises `DataError` naming shard and key for a sample that has no usable target.
    """

    def __call__(self, sample: RawSample) -> SampleFields: ...


class _LabelMember(Config):
    member: str = LABEL_MEMBER
    """Extension of the member that holds the label, or `json`."""
    field: str | None = None
    """Which field of a `json` member it is."""

    @model_validator(mode="after")
    def _field_belongs_to_json(self) -> Self:
        if self.member == _JSON_MEMBER and self.field is None:
            raise ValueError("member 'json' needs field, the name of the label in it")
        if self.member != _JSON_MEMBER and self.field is not None:
            raise ValueError(f"field has no effect with member {self.member!r}; leave it out, or set member to json")
        return self


class ClassLabels(_LabelMember):
    """One class per image: an ASCII number, or a number in JSON."""

    kind: Literal["class"] = "class"

    def reader(self, *, num_classes: int | None = None) -> TargetReader:
        """Makes `label`, the class index; below `num_classes` where that is given."""
        return ClassTarget(member=self.member, field=self.field, num_classes=num_classes)


class MultiLabels(_LabelMember):
    """Any number of classes per image, also none: ASCII numbers separated by spaces, or a list of numbers in JSON."""

    kind: Literal["multi"] = "multi"

    def reader(self, *, num_classes: int) -> TargetReader:
        """Makes `labels`, uint8 (num_classes,): 1 for each class of the image."""
        return MultiTarget(member=self.member, field=self.field, num_classes=num_classes)


LabelsConfig = Annotated[ClassLabels | MultiLabels, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class ClassTarget:
    """`label`: the index of the one class of a sample, int; below `num_classes` where that is given."""

    member: str = LABEL_MEMBER
    field: str | None = None
    num_classes: int | None = None

    def __call__(self, sample: RawSample) -> SampleFields:
        """Raises `DataError` for a label that is missing, not a number, one of several, or too large."""
        value = _value(sample, member=self.member, field=self.field)
        label = _number(value)
        if label is None:
            raise DataError(
                f"{sample.shard}: the label of sample {sample.key!r} is {_shown(value)}, not a class index (0, 1, 2, ...). {_remedy(value)}"
            )
        return {"label": _checked(label, sample=sample, num_classes=self.num_classes)}


ANY_CLASS = ClassTarget()
"""The index in member `cls`, however large."""


@dataclass(frozen=True, kw_only=True)
class MultiTarget:
    """`labels`: uint8 (num_classes,), 1 for each class of a sample."""

    num_classes: int
    member: str = LABEL_MEMBER
    field: str | None = None

    def __call__(self, sample: RawSample) -> SampleFields:
        """Raises `DataError` for labels that are missing, not numbers, or too large."""
        value = _value(sample, member=self.member, field=self.field)
        labels = [_number(part) for part in (value.split() if isinstance(value, str) else value if isinstance(value, list) else [value])]
        if None in labels:
            raise DataError(
                f"{sample.shard}: the labels of sample {sample.key!r} are {_shown(value)}, not class indices separated by spaces"
                " (empty for none), or in JSON a list of them. Pack the data set again, or name the member that holds them in"
                " `labels` of the objective."
            )
        hot = np.zeros(self.num_classes, np.uint8)
        hot[[_checked(label, sample=sample, num_classes=self.num_classes) for label in labels if label is not None]] = 1
        return {"labels": hot}


def read_caption(sample: RawSample) -> str:
    """The caption in the sample's member `txt`, UTF-8. Raises `DataError` where there is none."""
    return _text(sample, member=CAPTION_MEMBER, what="caption", remedy="Pack the data set again with captions.")


def _value(sample: RawSample, *, member: str, field: str | None) -> Any:
    """The text of a member, or what a field of its JSON holds."""
    remedy = "Pack the data set again with labels, or name the member that holds them in `labels` of objective or evaluation."
    text = _text(sample, member=member, what="label", remedy=remedy)
    if field is None:
        return text
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"{sample.shard}: member {member!r} of sample {sample.key!r} is not JSON ({error}). Pack the data set again."
        ) from None
    if not isinstance(values, Mapping) or field not in values:
        found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise DataError(
            f"{sample.shard}: member {member!r} of sample {sample.key!r} has no field {field!r}, it has {str(found)[:200]}. Name another"
            " in `labels.field` of objective or evaluation."
        )
    return values[field]


def _text(sample: RawSample, *, member: str, what: str, remedy: str) -> str:
    raw = sample.members.get(member)
    if raw is None:
        raise DataError(
            f"{sample.shard}: sample {sample.key!r} has no {what}: expected a member {member!r}, found {sorted(sample.members)}. {remedy}"
        )
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"{sample.shard}: member {member!r} of sample {sample.key!r} is not text in UTF-8. Pack the data set again."
        ) from None


def _remedy(value: Any) -> str:
    """What to do about a value that is not one class."""
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list) or (len(listed) == 1) or any(_number(part) is None for part in listed):
        return "Pack the data set again with class indices, or name the member that holds them in `labels` of objective or evaluation."
    return (
        "This data set gives several classes to an image, or none: it can be trained on with objective.labels.kind multi and the"
        " sigmoid loss; accuracy can be measured only on a set with one class per image."
    )


def _number(value: Any) -> int | None:
    """A class index that is written as digits or as a number in JSON; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit() and len(value) <= _LONGEST_LABEL:
        return int(value)
    return value if type(value) is int and 0 <= value < 10**_LONGEST_LABEL else None


def _checked(label: int, *, sample: RawSample, num_classes: int | None) -> int:
    # Checked here: on a GPU the loss would end the process with an assertion of the device that names no sample.
    if num_classes is not None and label >= num_classes:
        raise DataError(
            f"{sample.shard}: the label of sample {sample.key!r} is {label}, but the model has {num_classes} classes (0 to"
            f" {num_classes - 1}). Pack the data set again with labels below that, or set objective.num_classes to {label + 1} or more."
        )
    return label


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
