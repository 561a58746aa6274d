from vitscale.models import ViTConfig

SMALL = {"image_size": 24, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 4}


def test_explicit_sizes_replace_the_variants() -> None:
    shape = ViTConfig(variant="S/16", image_size=28, patch_size=7, depth=3, num_channels=1).shape
    assert (shape.width, shape.depth, shape.mlp_width, shape.num_heads, shape.patch_size) == (384, 3, 1536, 6, 7)
    assert (shape.grid, shape.num_tokens) == (4, 17)


def test_mlp_width_defaults_to_four_times_the_width() -> None:
    assert ViTConfig(image_size=8, patch_size=4, width=24, depth=1, num_heads=2).shape.mlp_width == 96


def test_a_gated_mlp_takes_two_thirds_of_a_plain_sizes_width() -> None:
    assert ViTConfig(variant="S/16", image_size=32, mlp="swiglu").shape.mlp_width == 1024
    assert ViTConfig(variant="S/16", image_size=32, mlp="swiglu64", mlp_width=640).shape.mlp_width == 640


def test_stochastic_depth_rises_to_its_rate_or_is_constant() -> None:
    model = ViTConfig(variant="S/16", image_size=32, depth=3, stochastic_depth=0.4)
    assert [model.block_spec(index).drop_rate for index in range(3)] == [0.0, 0.2, 0.4]
    constant = model.model_copy(update={"stochastic_depth_schedule": "constant"})
    assert [constant.block_spec(index).drop_rate for index in range(3)] == [0.4, 0.4, 0.4]


def test_only_a_model_that_drops_something_wants_draws() -> None:
    assert ViTConfig(**SMALL).draw_sources == {}
    assert set(ViTConfig(**SMALL, dropout=0.1).draw_sources) == {"model_seed"}
