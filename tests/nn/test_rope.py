import math

import pytest
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed, apply_rot_embed_cat
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit import modeling_dinov3_vit as hugging_face

from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid
from vitscale.nn.rope import AxialRope, CoordinateDraws, Dinov3RopeConfig, Eva02RopeConfig, MixedRope, rotate

WIDE = Grid(rows=3, columns=5)
SQUARE = Grid(rows=4, columns=4)
AUGMENTED = Dinov3RopeConfig(shift=0.3, jitter=1.5, rescale=2.0)


def heads(grid: Grid, *, num_prefix: int, head_width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, num_prefix + grid.rows * grid.columns, head_width, generator=generator)


@pytest.mark.parametrize("grid", [SQUARE, WIDE])
@pytest.mark.parametrize("base", [100.0, 7.0])
def test_dinov3_equals_transformers(grid: Grid, base: float) -> None:
    theirs = hugging_face.DINOv3ViTRopePositionEmbedding(
        DINOv3ViTConfig(hidden_size=48, num_attention_heads=3, patch_size=8, image_size=8, rope_theta=base)
    ).eval()
    cos, sin = theirs(torch.zeros(1, 3, 8 * grid.rows, 8 * grid.columns))
    x_BHNK = heads(grid, num_prefix=5)
    expected_BHNK, _ = hugging_face.apply_rotary_pos_emb(x_BHNK, x_BHNK, cos, sin)
    rope = Dinov3RopeConfig(base=base).build(head_width=16, grid=SQUARE)
    turned_BHNK = rotate(x_BHNK, rope.rotation(x_BHNK, grid=grid, num_prefix=5, seed_B=None))
    assert (turned_BHNK - expected_BHNK).abs().max() <= 2e-6
    assert torch.equal(turned_BHNK[:, :, :5], x_BHNK[:, :, :5])
    assert (turned_BHNK[:, :, 5:] - x_BHNK[:, :, 5:]).abs().amax(dim=(0, 1, 3)).median() > 0.1  # all but a patch in the centre


@pytest.mark.parametrize("normalise", ["separate", "min", "max"])
def test_dinov3_equals_timm_in_every_normalisation(normalise: str) -> None:
    theirs = RotaryEmbeddingDinoV3(dim=16, normalize_coords=normalise).get_embed(list(WIDE))
    x_BHNK = heads(WIDE, num_prefix=0)
    rope = Dinov3RopeConfig(normalise=normalise).build(head_width=16, grid=SQUARE)
    turned_BHNK = rotate(x_BHNK, rope.rotation(x_BHNK, grid=WIDE, num_prefix=0, seed_B=None))
    # Their angles are fp32, and up to 10 here.
    assert (turned_BHNK - apply_rot_embed_cat(x_BHNK, theirs, half=True)).abs().max() <= 4e-6


@pytest.mark.parametrize(
    ("own", "pretrained_grid", "grid"),
    [(SQUARE, None, SQUARE), (SQUARE, None, WIDE), (SQUARE, 6, SQUARE), (WIDE, None, Grid(rows=6, columns=2))],
)
def test_eva02_equals_timm(own: Grid, pretrained_grid: int | None, grid: Grid) -> None:
    reference = list(own) if pretrained_grid is None else [pretrained_grid] * 2
    theirs = RotaryEmbeddingCat(16, in_pixels=False, ref_feat_shape=reference).get_embed(list(grid))
    x_BHNK = heads(grid, num_prefix=1)
    rope = Eva02RopeConfig(pretrained_grid=pretrained_grid).build(head_width=16, grid=own)
    turned_BHNK = rotate(x_BHNK, rope.rotation(x_BHNK, grid=grid, num_prefix=1, seed_B=None))
    assert (turned_BHNK[:, :, 1:] - apply_rot_embed_cat(x_BHNK[:, :, 1:], theirs)).abs().max() <= 2e-6
    assert torch.equal(turned_BHNK[:, :, :1], x_BHNK[:, :, :1])


@pytest.mark.parametrize("grid", [SQUARE, WIDE])
def test_mixed_equals_timm_in_turns_and_gradient(grid: Grid) -> None:
    theirs = RotaryEmbeddingMixed(dim=48, depth=2, num_heads=3)
    ours = materialise(MixedRope(num_heads=3, head_width=16, base=10.0), seed=0)
    with torch.no_grad():
        theirs.freqs[:, 1].copy_(ours.frequencies)
    x_BHNK = heads(grid, num_prefix=1)
    turned_BHNK = rotate(x_BHNK, ours(x_BHNK, grid=grid, num_prefix=1))
    expected_BHNK = apply_rot_embed_cat(x_BHNK[:, :, 1:], theirs.get_embed(list(grid))[1])
    assert (turned_BHNK[:, :, 1:] - expected_BHNK).abs().max() <= 2e-6
    assert torch.equal(turned_BHNK[:, :, :1], x_BHNK[:, :, :1])

    weight_BHNK = heads(grid, num_prefix=0).flip(0)
    (turned_BHNK[:, :, 1:] * weight_BHNK).sum().backward()
    (expected_BHNK * weight_BHNK).sum().backward()
    expected = theirs.freqs.grad[:, 1]
    assert (ours.frequencies.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("config", [Dinov3RopeConfig(), Eva02RopeConfig()])
def test_gradient_turns_back(config: Dinov3RopeConfig | Eva02RopeConfig) -> None:
    x_BHNK = heads(WIDE, num_prefix=2).requires_grad_()
    rotation = config.build(head_width=16, grid=WIDE).rotation(x_BHNK, grid=WIDE, num_prefix=2, seed_B=None)
    rotate(x_BHNK, rotation).pow(2).sum().backward()  # the length of a vector does not depend on its direction
    torch.testing.assert_close(x_BHNK.grad, 2 * x_BHNK.detach())


@pytest.mark.parametrize("config", [Dinov3RopeConfig(), Eva02RopeConfig()])
def test_scores_depend_on_the_offset_only(config: Dinov3RopeConfig | Eva02RopeConfig) -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    rotation = config.build(head_width=16, grid=SQUARE).rotation(q, grid=SQUARE, num_prefix=0, seed_B=None)
    turned_q, turned_k = (rotate(x.expand(1, 1, 16, 16), rotation) for x in (q, k))
    score_RCRC = (turned_q @ turned_k.transpose(2, 3)).view(4, 4, 4, 4)
    torch.testing.assert_close(score_RCRC[:-1, :-1, :-1, :-1], score_RCRC[1:, 1:, 1:, 1:], rtol=0, atol=1e-5)
    assert (score_RCRC[0, 1] - score_RCRC[1, 0]).abs().max() > 0.1


def test_drawn_coordinates_are_dinov3s(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform_5 = torch.tensor([0.7, -0.2, 0.6, -0.9, 0.4])
    limits = (AUGMENTED.shift, math.log(AUGMENTED.jitter), math.log(AUGMENTED.rescale))
    drawn = iter(part * limit for part, limit in zip(uniform_5.split([2, 2, 1]), limits, strict=True))

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        value = next(drawn)
        assert low <= value.min() <= value.max() <= high
        return tensor.copy_(value.view(tensor.shape))

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    augmentation = {f"pos_embed_{name}": getattr(AUGMENTED, name) for name in ("shift", "jitter", "rescale")}
    theirs = hugging_face.DINOv3ViTRopePositionEmbedding(
        DINOv3ViTConfig(hidden_size=48, num_attention_heads=3, patch_size=8, image_size=8, **augmentation)
    ).train()
    cos, sin = theirs(torch.zeros(1, 3, 8 * WIDE.rows, 8 * WIDE.columns))
    x_BHNK = heads(WIDE, num_prefix=1)
    expected_BHNK, _ = hugging_face.apply_rotary_pos_emb(x_BHNK, x_BHNK, cos, sin)

    draws = AUGMENTED.draws
    assert draws is not None
    changes_B4 = draws.changes(torch.stack([uniform_5, torch.zeros(5)]))  # the second sample keeps its coordinates
    monkeypatch.setattr(CoordinateDraws, "draw", lambda *_: changes_B4)
    rope = AUGMENTED.build(head_width=16, grid=WIDE)
    turned_BHNK = rotate(x_BHNK, rope.rotation(x_BHNK, grid=WIDE, num_prefix=1, seed_B=torch.arange(2)))
    assert (turned_BHNK[0] - expected_BHNK[0]).abs().max() <= 5e-6
    plain_BHNK = rotate(x_BHNK, rope.rotation(x_BHNK, grid=WIDE, num_prefix=1, seed_B=None))
    assert (turned_BHNK[1] - plain_BHNK[1]).abs().max() <= 5e-6
    assert (turned_BHNK[0] - plain_BHNK[0]).abs().max() > 0.1


def test_draws_fill_what_is_asked_for() -> None:
    draws = AUGMENTED.draws
    assert draws is not None
    factor_B2, offset_B2 = draws.draw(torch.arange(1000)).chunk(2, dim=1)
    assert 2.5 < factor_B2.max() <= 3.0
    assert 1 / 3.0 <= factor_B2.min() < 1 / 2.5
    shift_B2, aspect_B = (offset_B2 / factor_B2), factor_B2[:, 0] / factor_B2[:, 1]
    assert 0.29 < shift_B2.max() <= 0.3 + 1e-6
    assert -0.3 - 1e-6 <= shift_B2.min() < -0.29
    assert 2.1 < aspect_B.max() <= 1.5**2 + 1e-5  # each axis has a jitter of its own
    assert shift_B2.mean().abs() < 0.02
    assert shift_B2.T.corrcoef()[0, 1].abs() < 0.1


def test_a_samples_draw_does_not_depend_on_its_batch() -> None:
    draws = AUGMENTED.draws
    assert draws is not None
    assert torch.equal(draws.draw(torch.tensor([7, 5]))[1], draws.draw(torch.tensor([5, 9, 11]))[0])


@pytest.mark.parametrize("changes", [{"shift": 0.1}, {"jitter": 1.1}, {"rescale": 1.1}])
def test_only_what_changes_coordinates_is_drawn(changes: dict) -> None:
    assert Dinov3RopeConfig().draws is None
    draws = Dinov3RopeConfig(**changes).draws
    assert draws is not None
    assert draws.draw(torch.tensor([1])).tolist() != [[1.0, 1.0, 0.0, 0.0]]


def test_tables_are_in_the_type_of_the_queries_and_made_once() -> None:
    rope: AxialRope = Eva02RopeConfig().build(head_width=16, grid=SQUARE)
    x = torch.zeros(1)
    first, again = (rope.rotation(x, grid=WIDE, num_prefix=1, seed_B=None) for _ in range(2))
    assert first.cos.data_ptr() == again.cos.data_ptr()
    low = rope.rotation(x.bfloat16(), grid=WIDE, num_prefix=1, seed_B=None)
    assert torch.equal(low.sin, first.sin.bfloat16())  # rounded after the sine was taken, not before
    assert rotate(heads(WIDE, num_prefix=1).bfloat16(), low).dtype == torch.bfloat16
    assert rope.rotation(x.to("meta"), grid=WIDE, num_prefix=1, seed_B=None).cos.is_meta
    augmented = AUGMENTED.build(head_width=16, grid=SQUARE).rotation(x.bfloat16(), grid=WIDE, num_prefix=1, seed_B=torch.arange(2))
    assert augmented.cos.dtype == torch.bfloat16
    assert augmented.cos.shape == (2, 1, 16, 16)
    mixed = materialise(MixedRope(num_heads=3, head_width=16, base=10.0), seed=0).bfloat16()
    assert mixed(x.bfloat16(), grid=WIDE, num_prefix=1).cos.shape == (1, 3, 16, 16)
    assert mixed(x.bfloat16(), grid=WIDE, num_prefix=1).cos.dtype == torch.bfloat16


def test_mixed_starts_with_directions_at_right_angles() -> None:
    x_HT, y_HT = materialise(MixedRope(num_heads=4, head_width=24, base=10.0), seed=0).frequencies.detach()
    lengths_T = torch.tensor([10.0 ** (-k / 6) for k in range(6)] * 2)
    torch.testing.assert_close((x_HT**2 + y_HT**2).sqrt(), lengths_T.expand(4, 12))
    direction_HT = torch.atan2(y_HT, x_HT)
    torch.testing.assert_close(direction_HT[:, :6], direction_HT[:, :1].expand(4, 6))
    turn_HT = (direction_HT[:, 6:] - direction_HT[:, :6]) % (2 * math.pi)
    torch.testing.assert_close(turn_HT, torch.full((4, 6), math.pi / 2))
    assert direction_HT[:, 0].unique().numel() == 4


@pytest.mark.parametrize("per_sample", [False, True])
def test_rotation_of_some_samples_and_patches(per_sample: bool) -> None:
    x_BHNK = heads(WIDE, num_prefix=1)
    seed_B = torch.tensor([3, 8]) if per_sample else None
    rotation = AUGMENTED.build(head_width=16, grid=WIDE).rotation(x_BHNK, grid=WIDE, num_prefix=1, seed_B=seed_B)
    turned_BHNK = rotate(x_BHNK, rotation)
    assert torch.equal(rotate(x_BHNK[1:], rotation.of_samples(torch.tensor([1]))), turned_BHNK[1:])
    patches_BP = torch.tensor([[1, 8], [14, 3]])
    tokens_BT = torch.tensor([[0, 2, 9], [0, 15, 4]])
    some_BHTK, expected_BHTK = (torch.stack([y[:, t] for y, t in zip(full, tokens_BT, strict=True)]) for full in (x_BHNK, turned_BHNK))
    assert torch.equal(rotate(some_BHTK, rotation.of_patches(patches_BP, num_prefix=1)), expected_BHTK)
