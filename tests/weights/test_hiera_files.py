"""Hiera's files: stages by widths, heads of a published model, what the shapes do not tell."""

from vitscale.weights.hiera_files import TIMM_HIERA

SHAPES = {
    "patch_embed.proj.weight": (96, 3, 7, 7),
    "pos_embed": (1, 3136, 96),
    "head.norm.weight": (768,),
    "blocks.0.mlp.fc1.weight": (384, 96),
    "blocks.1.proj.weight": (192, 96),
    **{f"blocks.{index}.norm2.weight": (width,) for index, width in enumerate([96] + [192] * 2 + [384] * 7 + [768] * 2)},
}


def test_hiera_t_is_read_off_its_shapes() -> None:
    assert TIMM_HIERA.claims(SHAPES)
    found = TIMM_HIERA.describe(SHAPES, settings={}, where="w")
    expected = {"depths": [1, 2, 7, 2], "num_heads": 1, "image_size": 224, "patch_size": 4, "shortcut": "project", "window_stages": 2}
    assert found.model | expected == found.model
    assert found.head is None


def test_two_tables_tell_their_own_grid_but_not_the_images() -> None:
    found = TIMM_HIERA.describe(SHAPES | {"pos_embed": (1, 96, 14, 14), "pos_embed_win": (1, 96, 8, 8)}, settings={}, where="w")
    assert (found.model["window_positions"], found.model["position_grid"]) == (True, 14)
    assert "image_size" not in found.model
