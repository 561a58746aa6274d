"""Transfer plans: a table of what happens to every tensor, the values that follow from it, and refusals."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.models import ViTConfig
from vitscale.nn.conv_stem import ConvStemConfig
from vitscale.nn.decomposed_bias import DecomposedBiasConfig
from vitscale.nn.patch_kernel import resample_patch_kernel
from vitscale.nn.position_table import AxisTable, GridTable, OffsetTable, PositionTable, fit_table, position_tables
from vitscale.nn.resample import Grid, PositionMode, resample_positions
from vitscale.objectives.supervised import SupervisedConfig
from vitscale.weights.transfer import InitFromConfig, ModelFacts, TransferPlan, format_table, plan_transfer

SIZES: dict[str, Any] = {"image_size": 16, "num_channels": 1, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}


def _facts(*, num_classes: int = 10, pre_logits: int | None = None, **model: Any) -> ModelFacts:
    config = ViTConfig(**(SIZES | model))
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=num_classes, pre_logits=pre_logits).build(config.build())
    return ModelFacts(
        shapes={name: tuple(parameter.shape) for name, parameter in objective.named_parameters()},
        tables=position_tables(objective),
        kernel_side=config.shape.kernel_side,
        num_channels=config.num_channels,
        resampling=config.resampling,
        settings={"kind": "vit", "num_heads": config.num_heads, "gelu": config.gelu},
    )


def _plan(source: ModelFacts, target: ModelFacts, **config: Any) -> TransferPlan:
    return plan_transfer(InitFromConfig(path="runs/old", **config), source=source, target=target)


def _changed(plan: TransferPlan) -> dict[str, str]:
    return {row.name: row.action for row in plan.rows if row.action != "loaded"}


def _weights(facts: ModelFacts) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in facts.shapes.items()}


def test_the_same_model_is_loaded_as_it_is() -> None:
    facts = _facts()
    plan, weights = _plan(facts, facts), _weights(facts)
    assert _changed(plan) == {}
    assert [row.name for row in plan.rows] == list(facts.shapes)
    for name, value in weights.items():
        loaded = plan.value(name, read=weights.__getitem__)
        assert loaded is not None
        assert torch.equal(loaded, value)


STEM = ConvStemConfig(widths=(4, 6))
DECOMPOSED = {"position_bias": DecomposedBiasConfig(), "pooling": "mean"}
POOLING = [
    f"backbone.attn_pool.{name}"
    for name in (
        "latent",
        *(f"{layer}.{leaf}" for layer in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2") for leaf in ("weight", "bias")),
    )
]
HEAD_REPLACED = {"head.fc.weight": "replaced", "head.fc.bias": "replaced"}
CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]] = [
    ({}, {"image_size": 24}, {}, {"backbone.pos_embed": "resampled"}),
    ({}, {"patch_size": 8}, {}, {"backbone.pos_embed": "resampled", "backbone.patch_embed.weight": "resampled"}),
    ({}, {"image_size": 32, "patch_size": 8}, {}, {"backbone.patch_embed.weight": "resampled"}),
    ({}, {"num_classes": 3}, {}, HEAD_REPLACED),
    ({}, {}, {"head": "replace"}, HEAD_REPLACED),
    ({}, {}, {"head": "keep"}, {}),
    ({}, {"pooling": "mean"}, {}, {"backbone.pos_embed": "resampled", "backbone.cls_token": "dropped"}),
    ({"pooling": "mean"}, {}, {}, {"backbone.cls_token": "initialised", "backbone.pos_embed": "resampled"}),
    # A head without its pre_logits layer means nothing, even where the last layer has the right shape.
    (
        {"pre_logits": 8},
        {},
        {},
        {**HEAD_REPLACED, "head.pre_logits.weight": "dropped", "head.pre_logits.bias": "dropped"},
    ),
    (
        {},
        {"pre_logits": 6},
        {},
        {"head.pre_logits.weight": "initialised", "head.pre_logits.bias": "initialised", **HEAD_REPLACED},
    ),
    (
        {"positions": "sincos2d_mae"},
        {"positions": "sincos2d_mae", "image_size": 24},
        {},
        {},
    ),
    ({}, {"num_registers": 2}, {}, {"backbone.reg_token": "initialised"}),
    ({"num_registers": 2}, {}, {}, {"backbone.reg_token": "dropped"}),
    (
        {"distillation_token": True},
        {"prefix_positions": False},
        {"head": "replace"},
        {
            **HEAD_REPLACED,
            "backbone.cls_token": "merged",
            "backbone.dist_token": "dropped",
            "backbone.pos_embed": "resampled",
            "head_dist.fc.weight": "dropped",
            "head_dist.fc.bias": "dropped",
        },
    ),
    ({"pooling": "mean"}, {"pooling": "map"}, {}, dict.fromkeys(POOLING, "initialised")),
    ({"pooling": "map"}, {"pooling": "mean"}, {}, dict.fromkeys(POOLING, "dropped")),
    (
        {"pooling": "mean"},
        DECOMPOSED,
        {},
        {f"backbone.blocks.{i}.attn.position_bias.{axis}": "initialised" for i in (0, 1) for axis in ("rows", "columns")},
    ),
    # Behind a stem patches are cut from its features: 1 x 1 of them, then 2 x 2, at twice the size.
    ({"stem": STEM}, {"stem": STEM, "image_size": 24}, {}, {"backbone.pos_embed": "resampled"}),
    ({"stem": STEM}, {"stem": STEM, "image_size": 32, "patch_size": 8}, {}, {"backbone.patch_embed.weight": "resampled"}),
]


@pytest.mark.parametrize(("source", "target", "config", "changed"), CASES)
def test_what_happens_to_every_tensor(
    source: dict[str, Any], target: dict[str, Any], config: dict[str, Any], changed: dict[str, str]
) -> None:
    source_facts, target_facts = _facts(**source), _facts(**target)
    plan, weights = _plan(source_facts, target_facts, **config), _weights(source_facts)
    assert _changed(plan) == changed
    assert {row.name for row in plan.rows} == set(source_facts.shapes) | set(target_facts.shapes)
    for name, shape in target_facts.shapes.items():
        value = plan.value(name, read=weights.__getitem__)
        assert (value is None) == (changed.get(name) in ("replaced", "initialised"))
        assert value is None or (tuple(value.shape), value.dtype) == (shape, torch.float32)


def test_only_what_is_used_is_read() -> None:
    source, target = _facts(), _facts(num_classes=3)
    weights, read = _weights(source), []
    plan = _plan(source, target)
    for name in target.shapes:
        plan.value(name, read=lambda name: (read.append(name), weights[name])[1])
    assert sorted(read) == sorted(name for name in source.shapes if not name.startswith("head."))


@pytest.mark.parametrize("mode", ["google", "timm", "hf", "dinov2", "pe"])
def test_positions_and_kernel_are_resampled_by_the_configured_mode(mode: Any) -> None:
    source, target = _facts(), _facts(image_size=18, patch_size=6, positions="learned")
    weights = _weights(source)
    plan = _plan(source, target, positions=mode)
    table, kernel = weights["backbone.pos_embed"], weights["backbone.patch_embed.weight"]
    expected_table = resample_positions(table, source=Grid(4, 4), target=Grid(3, 3), num_prefix=1, mode=mode)
    expected_kernel = resample_patch_kernel(kernel, num_channels=1, source=4, target=6)
    for name, expected in (("backbone.pos_embed", expected_table), ("backbone.patch_embed.weight", expected_kernel)):
        value = plan.value(name, read=weights.__getitem__)
        assert value is not None
        assert torch.equal(value, expected)
    assert f"grid 4 x 4 to 3 x 3 by mode {mode}" in format_table(plan)


@pytest.mark.parametrize("kernel_mode", ["timm", "flexivit"])
def test_the_kernels_mode_is_the_configured_one(kernel_mode: Any) -> None:
    source, target = _facts(), _facts(image_size=24, patch_size=6)
    weights = _weights(source)
    value = _plan(source, target, patch_kernel=kernel_mode).value("backbone.patch_embed.weight", read=weights.__getitem__)
    expected = resample_patch_kernel(weights["backbone.patch_embed.weight"], num_channels=1, source=4, target=6, mode=kernel_mode)
    assert value is not None
    assert torch.equal(value, expected)


MODES: list[tuple[PositionMode | None, PositionMode | None, PositionMode, str]] = [
    (
        "dinov2",
        None,
        "dinov2",
        "stored with the source; this model's own is timm: set model.resampling to dinov2 to go on with the source's",
    ),
    ("timm", None, "timm", "stored with the source"),
    ("dinov2", "timm", "timm", "asked for by init_from.positions"),
    (None, None, "google", "the default, as the source is from before the mode was stored; this model's own is timm"),
]


@pytest.mark.parametrize(("stored", "asked", "used", "note"), MODES)
def test_the_mode_is_the_stored_one_unless_another_is_asked_for(
    stored: PositionMode | None, asked: PositionMode | None, used: PositionMode, note: str
) -> None:
    source, target = dataclasses.replace(_facts(), resampling=stored), _facts(image_size=24)
    plan, weights = _plan(source, target, positions=asked), _weights(source)
    value = plan.value("backbone.pos_embed", read=weights.__getitem__)
    expected = resample_positions(weights["backbone.pos_embed"], source=Grid(4, 4), target=Grid(6, 6), num_prefix=1, mode=used)
    assert value is not None
    assert torch.equal(value, expected)
    text = format_table(plan)
    assert f"grid 4 x 4 to 6 x 6 by mode {used}" in text
    assert f"mode {used}" in text.splitlines()[-1]
    assert note in text.splitlines()[-1]


def test_as_many_patches_in_another_grid_are_resampled() -> None:
    facts = _facts()
    wide = dataclasses.replace(facts, tables={"backbone.pos_embed": GridTable(grid=Grid(2, 8), prefix=("class",))})
    weights = _weights(facts)
    plan = _plan(wide, facts)
    value = plan.value("backbone.pos_embed", read=weights.__getitem__)
    expected = resample_positions(weights["backbone.pos_embed"], source=Grid(2, 8), target=Grid(4, 4), num_prefix=1, mode="timm")
    assert value is not None
    assert torch.equal(value, expected)
    assert not torch.equal(value, weights["backbone.pos_embed"])


def _with_table(table: PositionTable, shape: tuple[int, ...]) -> ModelFacts:
    facts = _facts()
    name = "backbone.blocks.0.attn.position_bias.table"
    return dataclasses.replace(facts, shapes={**facts.shapes, name: shape}, tables={**facts.tables, name: table})


BIAS = "backbone.blocks.0.attn.position_bias.table"
BIASES: list[tuple[PositionTable, tuple[int, ...], PositionTable, tuple[int, ...]]] = [
    (OffsetTable(window=Grid(4, 4), num_extra=3), (52, 2), OffsetTable(window=Grid(6, 5), num_extra=3), (102, 2)),
    (OffsetTable(window=Grid(4, 4)), (49, 2), OffsetTable(window=Grid(6, 6), num_extra=3), (124, 2)),
    (AxisTable(length=7), (7, 4), AxisTable(length=11), (11, 4)),
]


@pytest.mark.parametrize(("here", "shape", "there", "new_shape"), BIASES)
def test_tables_of_relative_positions_are_fitted(
    here: PositionTable, shape: tuple[int, ...], there: PositionTable, new_shape: tuple[int, ...]
) -> None:
    source, target = _with_table(here, shape), _with_table(there, new_shape)
    plan, weights = _plan(source, target, positions="beit"), _weights(source)
    value = plan.value(BIAS, read=weights.__getitem__)
    assert _changed(plan) == {BIAS: "resampled"}
    assert value is not None
    assert torch.equal(value, fit_table(weights[BIAS], source=here, target=there, mode="beit"))


def test_a_mode_without_a_rule_for_relative_positions_is_refused_once_for_all_blocks() -> None:
    source = _with_table(OffsetTable(window=Grid(4, 4)), (49, 2))
    target = _with_table(OffsetTable(window=Grid(6, 6)), (121, 2))
    with pytest.raises(CheckpointError, match=r"\(1 difference\)") as caught:
        _plan(source, target, positions="google")
    assert f"{BIAS}: mode google says nothing about relative positions; set init_from.positions to one of timm, hf, beit, swin" in str(
        caught.value
    )
    with pytest.raises(CheckpointError, match=r"49 x 2 in the source, 11 x 2 here"):
        _plan(source, _with_table(AxisTable(length=11), (11, 2)))


def test_a_class_position_without_a_row_is_added_to_the_class_token() -> None:
    source = _facts()
    tables, shapes = {"backbone.pos_embed": GridTable(grid=Grid(4, 4))}, {**source.shapes, "backbone.pos_embed": (1, 16, 8)}
    target = dataclasses.replace(source, tables=tables, shapes=shapes)
    plan, weights = _plan(source, target), _weights(source)
    assert _changed(plan) == {"backbone.cls_token": "merged", "backbone.pos_embed": "resampled"}
    token = plan.value("backbone.cls_token", read=weights.__getitem__)
    table = plan.value("backbone.pos_embed", read=weights.__getitem__)
    assert token is not None
    assert table is not None
    assert torch.equal(token, weights["backbone.cls_token"] + weights["backbone.pos_embed"][:, :1])
    assert torch.equal(table, weights["backbone.pos_embed"][:, 1:])
    # And back: a row of zeros gives the same sum.
    back = _plan(target, source)
    assert _changed(back) == {"backbone.pos_embed": "resampled"}
    table = back.value("backbone.pos_embed", read={"backbone.pos_embed": table}.__getitem__)
    assert table is not None
    assert torch.equal(table[:, 0], torch.zeros(1, 8))


def test_a_distillation_position_without_a_row_is_added_to_its_token() -> None:
    source, target = _facts(distillation_token=True), _facts(distillation_token=True, prefix_positions=False)
    plan, weights = _plan(source, target), _weights(source)
    token = plan.value("backbone.dist_token", read=weights.__getitem__)
    assert token is not None
    assert torch.equal(token, weights["backbone.dist_token"] + weights["backbone.pos_embed"][:, 1:2])


def test_settings_that_no_shape_shows_are_told() -> None:
    told = format_table(_plan(_facts(gelu="tanh"), _facts()))
    assert 'settings that differ: model.gelu "tanh" in the source, "exact" here' in told.splitlines()
    assert "settings that differ" not in format_table(_plan(_facts(), _facts(image_size=24)))


def test_the_class_tokens_row_comes_and_goes() -> None:
    with_token, without = _facts(), _facts(pooling="mean")
    weights = _weights(with_token)
    dropped = _plan(with_token, without).value("backbone.pos_embed", read=weights.__getitem__)
    assert dropped is not None
    assert torch.equal(dropped, weights["backbone.pos_embed"][:, 1:])
    weights = _weights(without)
    added = _plan(without, with_token).value("backbone.pos_embed", read=weights.__getitem__)
    assert added is not None
    assert torch.equal(added[:, 0], torch.zeros(1, 8))
    assert torch.equal(added[:, 1:], weights["backbone.pos_embed"])


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {"num_heads": 4}, {}, ["model.num_heads: 2 in the source, 4 here", "1 difference"]),
    (DECOMPOSED, {"pooling": "mean"}, {}, ["backbone.blocks.0.attn.position_bias.rows: 7 x 4 in the source, - here"]),
    ({}, {"depth": 3}, {}, ["backbone.blocks.2.norm1.weight: - in the source, 8 here", "12 differences"]),
    ({"depth": 3}, {}, {}, ["backbone.blocks.2.norm1.weight: 8 in the source, - here"]),
    ({}, {"width": 12}, {}, ["backbone.patch_embed.weight: 8 x 16 in the source, 12 x 64 here", "... and 22 more"]),
    ({}, {"mlp_width": 20}, {}, ["backbone.blocks.0.mlp.fc1.weight: 32 x 8 in the source, 20 x 8 here"]),
    ({}, {"num_channels": 3}, {}, ["model.num_channels: 1 in the source, 3 here", "(1 difference)"]),
    ({}, {"positions": "sincos2d_mae"}, {}, ["backbone.pos_embed: 1 x 17 x 8 in the source, - here", "kind of positions"]),
    ({"positions": "sincos2d_mae"}, {}, {}, ["backbone.pos_embed: - in the source, 1 x 17 x 8 here"]),
    ({}, {"stem": STEM}, {}, ["backbone.stem.layers.0.conv.weight: - in the source, 4 x 1 x 3 x 3 here", "channels, stem and kind"]),
    ({}, {"num_classes": 3}, {"head": "keep"}, ["head.fc.weight: 10 x 8 in the source, 3 x 8 here", "'auto'"]),
]


@pytest.mark.parametrize(("source", "target", "config", "messages"), REFUSALS)
def test_another_architecture_is_refused_with_the_first_differences(
    source: dict[str, Any], target: dict[str, Any], config: dict[str, Any], messages: list[str]
) -> None:
    if "width" in target:
        target = {**target, "image_size": 24, "patch_size": 8}  # resampled tensors of another width are differences too
    with pytest.raises(CheckpointError, match=r"init_from\.path runs/old: its weights do not fit this model") as caught:
        _plan(_facts(**source), _facts(**target), **config)
    assert all(message in str(caught.value) for message in messages), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 11


def test_a_resampled_tensor_of_another_width_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"backbone\.pos_embed: 1 x 17 x 8 in the source, 1 x 37 x 12 here"):
        _plan(_facts(), _facts(width=12, image_size=24))


def _lines(plan: TransferPlan) -> Iterator[list[str]]:
    for line in format_table(plan).splitlines():
        yield line.split()


def test_the_table_shows_what_changed_and_counts_the_rest() -> None:
    plan = _plan(_facts(pre_logits=8), _facts(num_classes=3, image_size=24, pooling="mean"))
    lines = list(_lines(plan))
    num_loaded = sum(row.action == "loaded" for row in plan.rows)
    assert lines[0] == ["action", "tensor", "source", "here"]
    assert lines[-2][:3] == ["loaded", str(num_loaded), "tensors"]
    assert lines[-1] == ["positions:", "mode", "timm,", "stored", "with", "the", "source"]
    assert [line[:2] for line in lines[1:-2]] == [[action, name] for name, action in _changed(plan).items()]
    assert len(lines) == 3 + len(plan.rows) - num_loaded


def test_the_count_of_loaded_values_is_that_of_the_tensors() -> None:
    facts = _facts()
    assert f"{sum(torch.Size(shape).numel() for shape in facts.shapes.values()):,} values" in format_table(_plan(facts, facts))


def test_a_head_is_made_out_of_another_data_sets_by_a_map_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("7\n0\n7\n")
    source, target = _facts(pre_logits=6), _facts(num_classes=3, pre_logits=6)
    plan, weights = _plan(source, target, class_map=str(path)), _weights(source)
    assert _changed(plan) == {"head.fc.weight": "mapped", "head.fc.bias": "mapped"}
    assert f"a row for each class, by {path}" in format_table(plan)
    for name in ("head.fc.weight", "head.fc.bias"):
        value = plan.value(name, read=weights.__getitem__)
        assert value is not None
        assert torch.equal(value, weights[name][[7, 0, 7]])


@pytest.mark.parametrize(
    ("lines", "target", "problem"),
    [
        ("7\n0\n", {"num_classes": 3}, "init_from.class_map: 2 lines for the 3 classes of head.fc.weight"),
        ("7\n10\n1\n", {"num_classes": 3}, "init_from.class_map: class 10, and head.fc.weight of the source has classes 0 to 9"),
        ("7\n0\n1\n", {"num_classes": 3, "pre_logits": 6}, "head.pre_logits.weight: - in the source, 6 x 8 here"),
    ],
)
def test_a_map_that_does_not_fit_the_heads_is_refused(tmp_path: Path, lines: str, target: dict[str, Any], problem: str) -> None:
    path = tmp_path / "map.txt"
    path.write_text(lines)
    with pytest.raises(CheckpointError) as caught:
        _plan(_facts(), _facts(**target), class_map=str(path))
    assert problem in str(caught.value)


def test_a_map_contradicts_a_fresh_head() -> None:
    with pytest.raises(ValidationError, match=r"init_from\.head replace makes no head out of"):
        InitFromConfig(path="runs/old", head="replace", class_map="map.txt")


def test_a_model_of_another_kind_is_refused_by_its_kind_alone() -> None:
    facts = _facts()
    other = dataclasses.replace(facts, settings={**facts.settings, "kind": "swin"}, shapes={"backbone.merges.0.norm.weight": (4,)})
    with pytest.raises(CheckpointError, match=r"\(1 difference\)") as caught:
        _plan(other, facts)
    assert "model.kind: swin in the source, vit here" in str(caught.value)
