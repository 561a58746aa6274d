from vitscale.models import ViTConfig


def shape(**changes: object):  # type: ignore[no-untyped-def]
    return ViTConfig.model_validate({"variant": "mu/8", "image_size": 40, "depth": 3, **changes}).shape


def test_tokens_are_counted_by_what_they_are() -> None:
    model = shape(num_registers=4, distillation_token=True)
    assert (model.num_prefix, model.num_prefix_positions, model.num_positions, model.num_tokens) == (6, 2, 27, 31)
    assert shape(prefix_positions=False).num_positions == 25
    assert shape(patch_dropout=0.5).num_tokens == 1 + 12


def test_windows_are_filled_up_but_in_global_blocks() -> None:
    local, whole, _ = shape(pooling="mean", window=3, global_blocks=(1,)).blocks
    assert (local.num_tokens, local.padding_tokens, local.attended_tokens) == (25, 11, 9)
    assert (whole.num_tokens, whole.padding_tokens, whole.attended_tokens) == (25, 0, 25)
