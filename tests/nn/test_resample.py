"""Position resampling against the implementations it is named after, on square and non-square grids."""

import importlib
import itertools
import types
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.resample import POSITION_MODES, Grid, PositionMode, resample_positions

PAIRS = [
    (Grid(4, 4), Grid(7, 7)),
    (Grid(14, 14), Grid(24, 24)),
    (Grid(7, 7), Grid(4, 4)),
    (Grid(3, 5), Grid(6, 4)),
    (Grid(2, 8), Grid(4, 4)),  # as many tokens, another grid
    (Grid(1, 1), Grid(3, 2)),
    (Grid(5, 3), Grid(1, 1)),
]


def _table(grid: Grid, *, num_prefix: int = 1, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(grid.rows * 100 + grid.columns)
    return torch.randn(1, num_prefix + grid.rows * grid.columns, width, generator=generator)


def _zoom(values: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """scipy.ndimage.zoom(order=1) along one axis: linear interpolation at evenly spaced points from first to last sample."""
    points = np.linspace(0.0, values.shape[axis] - 1, size) if size > 1 else np.zeros(1)
    return np.apply_along_axis(lambda line: np.interp(points, np.arange(len(line)), line), axis, values)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_google_is_corner_aligned_linear_zoom(source: Grid, target: Grid) -> None:
    table = _table(source)
    grid = table[0, 1:].double().numpy().reshape(*source, -1)
    expected = _zoom(_zoom(grid, target.rows, axis=0), target.columns, axis=1).reshape(target.rows * target.columns, -1)
    resampled = resample_positions(table, source=source, target=target, num_prefix=1, mode="google")
    np.testing.assert_allclose(resampled[0, 1:].numpy(), expected, atol=5e-6)  # torch places the samples in fp32


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_timm_is_timms(source: Grid, target: Grid, num_prefix: int) -> None:
    from timm.layers import resample_abs_pos_embed

    table = _table(source, num_prefix=num_prefix)
    expected = resample_abs_pos_embed(table, new_size=list(target), old_size=list(source), num_prefix_tokens=num_prefix)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=num_prefix, mode="timm"), expected)


def test_timm_npz_is_what_timm_does_as_it_reads_googles_files(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    def model(size: int) -> VisionTransformer:
        return VisionTransformer(img_size=size, patch_size=4, embed_dim=6, depth=0, num_heads=2, num_classes=0)

    table, theirs = _table(Grid(4, 4)), model(24)
    google = {"embedding/kernel": np.zeros((4, 4, 3, 6)), "embedding/bias": np.zeros(6), "cls": np.zeros((1, 1, 6))}
    norm = {"Transformer/encoder_norm/scale": np.ones(6), "Transformer/encoder_norm/bias": np.zeros(6)}
    np.savez(tmp_path / "google.npz", **google, **norm, **{"Transformer/posembed_input/pos_embedding": table.numpy()})
    theirs.load_pretrained(str(tmp_path / "google.npz"))
    resampled = resample_positions(table, source=Grid(4, 4), target=Grid(6, 6), num_prefix=1, mode="timm_npz")
    assert torch.equal(resampled, theirs.pos_embed)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_naflex_is_timms_naflexvit(source: Grid, target: Grid) -> None:
    from timm.models.naflexvit import NaFlexEmbeds, NaFlexVitCfg

    table, defaults = _table(source, num_prefix=0), NaFlexVitCfg()
    # The method reads these attributes of its module.
    module = types.SimpleNamespace(
        pos_embed=table.view(1, *source, -1),
        pos_embed_ar_preserving=defaults.pos_embed_ar_preserving,
        pos_embed_interp_mode=defaults.pos_embed_interp_mode,
        pos_embed_antialias=defaults.pos_embed_antialias,
        pos_embed_align_corners=defaults.pos_embed_align_corners,
    )
    tokens = torch.zeros(1, target.rows * target.columns, table.shape[-1])
    NaFlexEmbeds._apply_learned_pos_embed(module, tokens, list(target))
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=0, mode="naflex"), tokens)


HUGGING_FACE: list[tuple[str, str, PositionMode]] = [
    ("vit", "ViTEmbeddings", "hf"),
    ("dinov2", "Dinov2Embeddings", "hf"),
    ("vit_mae", "ViTMAEEmbeddings", "mae"),
    ("deit", "DeiTEmbeddings", "deit"),
    ("beit", "BeitEmbeddings", "beit"),
    ("swin", "SwinEmbeddings", "swin"),
    ("siglip", "SiglipVisionEmbeddings", "hf"),
]
"""Embeddings of transformers, and ours. The repositories of MAE, DeiT, BEiT and Swin have the same formula in scripts that train."""
PREFIXES = {"DeiTEmbeddings": 2, "SwinEmbeddings": 0, "SiglipVisionEmbeddings": 0}


@pytest.mark.parametrize(("source", "target"), [(s, t) for s, t in PAIRS if s.rows == s.columns])
@pytest.mark.parametrize(("module_name", "class_name", "mode"), HUGGING_FACE)
def test_hf_is_transformers(module_name: str, class_name: str, mode: PositionMode, source: Grid, target: Grid) -> None:
    module = importlib.import_module(f"transformers.models.{module_name}.modeling_{module_name}")
    num_prefix = PREFIXES.get(class_name, 1)
    table = _table(source, num_prefix=num_prefix)
    # The method reads a few attributes of its module; a whole model would only add to them.
    embeddings = types.SimpleNamespace(
        position_embeddings=table,
        position_embedding=types.SimpleNamespace(weight=table[0]),
        patch_size=2,
        patch_embeddings=types.SimpleNamespace(patch_size=(2, 2)),
        config=types.SimpleNamespace(patch_size=2),
    )
    patches = torch.zeros(1, num_prefix + target.rows * target.columns, table.shape[-1])
    expected = getattr(module, class_name).interpolate_pos_encoding(embeddings, patches, target.rows * 2, target.columns * 2)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=num_prefix, mode=mode), expected)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_siglip2_is_transformers(source: Grid, target: Grid) -> None:
    from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

    table, num_tokens = _table(source, num_prefix=0), target.rows * target.columns
    shapes = torch.tensor([list(target)])
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(table.view(*source, -1), shapes, max_length=num_tokens)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=0, mode="siglip2"), expected)
    # big_vision's FlexiViT: jax.image.resize, "linear", which antialiases in the same way.
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=0, mode="flexivit"), expected)


def _meta_dinov2(table: Tensor, *, side: int, target: Grid, offset: float, antialias: bool) -> Tensor:
    """facebookresearch/dinov2, `interpolate_pos_encoding`, from its formula: scale factors where there is an offset, else a size."""
    how = {"size": tuple(target)} if not offset else {"scale_factor": tuple(float(n + offset) / side for n in target)}
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, mode="bicubic", antialias=antialias, **how)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, target.rows * target.columns, -1)], dim=1)


@pytest.mark.parametrize(("mode", "offset", "antialias"), [("dinov2", 0.1, False), ("dinov2_reg", 0.0, True)])
@pytest.mark.parametrize(("side", "target"), [(14, Grid(24, 24)), (37, Grid(16, 16)), (4, Grid(3, 7)), (7, Grid(7, 5))])
def test_dinov2_is_metas(side: int, target: Grid, mode: PositionMode, offset: float, antialias: bool) -> None:
    table, source = _table(Grid(side, side)), Grid(side, side)
    expected = _meta_dinov2(table, side=side, target=target, offset=offset, antialias=antialias)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=1, mode=mode), expected)


@pytest.mark.parametrize("side", range(1, 41))
def test_dinov2s_factors_give_every_grid(side: int) -> None:
    table = _table(Grid(side, side), num_prefix=0, width=1)
    for target in (1, 13, 14, 16, 24, 37):
        resampled = resample_positions(table, source=Grid(side, side), target=Grid(target, target), num_prefix=0, mode="dinov2")
        assert resampled.shape == (1, target**2, 1)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_open_clip_and_perception_models_are_their_formulas(source: Grid, target: Grid) -> None:
    """mlfoundations/open_clip, `resize_pos_embed`; facebookresearch/perception_models, `_sample_abs_posemb`."""
    table = _table(source)
    formulas: dict[PositionMode, dict[str, Any]] = {
        "open_clip": {"mode": "bicubic", "antialias": True, "align_corners": False},
        "pe": {"mode": "bilinear", "align_corners": False},
    }
    for mode, arguments in formulas.items():
        image = table[0, 1:].reshape(1, *source, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(image, size=tuple(target), **arguments).permute(0, 2, 3, 1).reshape(target.rows * target.columns, -1)
        expected = torch.cat([table[0, :1], resized])[None]
        assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=1, mode=mode), expected)


NORM_RATIOS: list[tuple[PositionMode, float]] = [("google", 0.672), ("hf", 0.860)]


@pytest.mark.parametrize(("mode", "ratio"), NORM_RATIOS)
def test_the_norm_shrinks_as_measured_elsewhere(mode: PositionMode, ratio: float) -> None:
    """A random table from 14 x 14 to 24 x 24: how much shorter its vectors get on average. The ratios hold for one other draw."""
    table = _table(Grid(14, 14), num_prefix=0, width=768)
    resampled = resample_positions(table, source=Grid(14, 14), target=Grid(24, 24), num_prefix=0, mode=mode)
    assert resampled.norm(dim=-1).mean() / table.norm(dim=-1).mean() == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("mode", POSITION_MODES)
def test_prefix_rows_are_kept_and_the_same_grid_is_not_touched(mode: PositionMode) -> None:
    table = _table(Grid(3, 4), num_prefix=2)
    assert torch.equal(resample_positions(table, source=Grid(3, 4), target=Grid(3, 4), num_prefix=2, mode=mode), table)
    resampled = resample_positions(table, source=Grid(3, 4), target=Grid(5, 2), num_prefix=2, mode=mode)
    assert resampled.shape == (1, 2 + 10, 6)
    assert torch.equal(resampled[:, :2], table[:, :2])


@pytest.mark.parametrize("mode", POSITION_MODES)
def test_rows_and_columns_are_not_swapped(mode: PositionMode) -> None:
    source, target = Grid(4, 6), Grid(8, 3)
    by_row = torch.arange(4.0).view(4, 1).expand(4, 6).reshape(1, 24, 1)
    resampled = resample_positions(by_row, source=source, target=target, num_prefix=0, mode=mode).view(target)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(8, 3))
    assert resampled[:, 0].diff().min() > 0


def test_modes_of_another_operation_differ_and_those_of_the_same_agree() -> None:
    table = _table(Grid(6, 6))
    results = {mode: resample_positions(table, source=Grid(6, 6), target=Grid(4, 4), num_prefix=1, mode=mode) for mode in POSITION_MODES}
    for one, other in itertools.combinations(POSITION_MODES, 2):
        difference = (results[one] - results[other]).abs().max()
        same = POSITION_MODES[one].absolute == POSITION_MODES[other].absolute
        assert (difference == 0) if same else (difference > 0.05), (one, other, difference)
    assert len({rules.absolute for rules in POSITION_MODES.values()}) == 6


def test_every_name_has_its_rules() -> None:
    assert set(get_args(PositionMode)) == set(POSITION_MODES)


def test_half_precision_tables_are_resampled_in_fp32() -> None:
    table = _table(Grid(4, 4)).to(torch.bfloat16)
    resampled = resample_positions(table, source=Grid(4, 4), target=Grid(3, 3), num_prefix=1, mode="timm")
    assert resampled.dtype == torch.float32
    assert torch.equal(resampled, resample_positions(table.float(), source=Grid(4, 4), target=Grid(3, 3), num_prefix=1, mode="timm"))


def test_a_table_of_another_grid_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        resample_positions(_table(Grid(4, 4)), source=Grid(4, 5), target=Grid(2, 2), num_prefix=1, mode="hf")
