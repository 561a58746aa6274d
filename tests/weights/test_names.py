"""Names: the tables of all layouts, which tests/train/test_export.py and test_import_weights.py run against the projects themselves."""

import pytest
import torch
from torch import Tensor

from tests.weights.foreign import torch_state
from vitscale.config import CheckpointError
from vitscale.models import ViTConfig
from vitscale.objectives.supervised import SupervisedConfig
from vitscale.weights.forms import Sizes
from vitscale.weights.names import Conversion, plan_conversions, split_block
from vitscale.weights.rules import Layout

LAYOUTS: tuple[Layout, ...] = ("timm", "hf_vit", "vit_jax", "big_vision")
"""Those of a plain ViT; the others hold what it does not have, see tests/train/test_weight_families.py."""
MODEL = ViTConfig(image_size=12, patch_size=4, width=32, depth=12, num_heads=4, mlp_width=48)
SIZES = Sizes(num_channels=3, num_heads=4)


def shapes(*, pre_logits: int | None = None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=5, pre_logits=pre_logits).build(MODEL.build())
    return {name: tuple(parameter.shape) for name, parameter in objective.named_parameters()}


def values(conversion: Conversion) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(str(conversion.ours)))
    return [torch.randn(shape, generator=generator) for shape in conversion.ours.values()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_identity(layout: Layout) -> None:
    seen = []
    for conversion in plan_conversions(shapes(), layout=layout, sizes=SIZES):
        ours = values(conversion)
        theirs = conversion.to_theirs(ours)
        assert {name: tuple(value.shape) for name, value in theirs.items()} == conversion.theirs
        back = conversion.to_ours(list(theirs.values()))
        assert all(torch.equal(value, expected) for value, expected in zip(back.values(), ours, strict=True))
        seen += list(back)
    assert sorted(seen) == sorted(shapes())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_called_in_order_is_in_order(layout: Layout) -> None:
    for conversion in plan_conversions(shapes(), layout=layout, sizes=SIZES):
        if conversion.form.in_order:
            ours = values(conversion)
            theirs = conversion.to_theirs(ours).values()
            assert torch.equal(torch.cat([value.flatten() for value in theirs]), torch.cat([value.flatten() for value in ours]))


def test_timms_names_and_shapes_are_timms() -> None:
    theirs = {name: shape for c in plan_conversions(shapes(), layout="timm", sizes=SIZES) for name, shape in c.theirs.items()}
    two_blocks = {name: shape for name, shape in theirs.items() if split_block(name)[1] in ("", "0", "1")}
    assert two_blocks == {name: tuple(value.shape) for name, value in torch_state().items()}


def test_a_row_of_the_class_token_moves_between_table_and_token() -> None:
    token, table = torch.randn(1, 1, 32), torch.randn(1, 9, 32)
    whole = torch.cat([torch.zeros(1, 1, 32), table], dim=1)
    for own_row, their_row, given, expected in ((True, False, whole, table), (False, True, table, whole)):
        sizes = Sizes(num_channels=3, num_heads=4, own_row=own_row, their_row=their_row)
        names = {"backbone.cls_token": (1, 1, 32), "backbone.pos_embed": tuple(given.shape)}
        (conversion,) = plan_conversions(names, layout="big_vision", sizes=sizes)
        assert conversion.theirs["pos_embedding"] == tuple(expected.shape)
        assert torch.equal(conversion.to_theirs([token, given])["pos_embedding"], expected)
        assert torch.equal(conversion.to_ours([token, expected])["backbone.pos_embed"], given)
    own = torch.randn(1, 10, 32)
    folded = plan_conversions(
        {"backbone.cls_token": (1, 1, 32), "backbone.pos_embed": (1, 10, 32)},
        layout="timm",
        sizes=Sizes(num_channels=3, num_heads=4, their_row=False),
    )[0].to_theirs([token, own])
    assert torch.equal(folded["cls_token"], token + own[:, :1])


def test_what_a_layout_has_no_place_for_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"timm has no place for head\.pre_logits\.weight, head\.pre_logits\.bias"):
        plan_conversions(shapes(pre_logits=8), layout="timm", sizes=SIZES)
    unknown = {f"backbone.blocks.{block}.ls1.gamma": (32,) for block in range(7)}
    with pytest.raises(CheckpointError, match=r"ls1\.gamma and 2 more"):
        plan_conversions(unknown, layout="hf_vit", sizes=SIZES)


def test_blocks_are_told_apart_from_other_numbers() -> None:
    assert split_block("backbone.blocks.11.mlp.fc1.weight") == ("backbone.blocks.{i}.mlp.fc1.weight", "11")
    assert split_block("Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel") == (
        "Transformer/encoderblock_{i}/MlpBlock_3/Dense_0/kernel",
        "3",
    )
    assert split_block("head.fc.weight") == ("head.fc.weight", "")
