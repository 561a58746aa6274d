"""The stem's formulas against timm's layers, and vit_jax's names against timm's."""

from functools import partial

import torch
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from torch import Tensor

from vitscale.weights.reference_stem import stem_output

AT = "patch_embed.backbone"
CONV = partial(StdConv2dSame, eps=1e-8)


def timm_stem() -> ResNetV2:
    model = ResNetV2(
        (2, 1), (128, 256), num_classes=0, global_pool="", stem_chs=32, conv_layer=CONV, stem_type="same", preact=False, in_chans=2
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_equals_timms_layers() -> None:
    model = timm_stem()
    state = {f"{AT}.{name}": value for name, value in model.state_dict().items()}
    image_BCHW = torch.randn(1, 2, 32, 48, generator=torch.Generator().manual_seed(1))
    found_BCHW = stem_output(image_BCHW, names=state, read=state.__getitem__)
    assert found_BCHW.shape == (1, 256, 4, 6)
    torch.testing.assert_close(found_BCHW, model(image_BCHW), rtol=0, atol=1e-5)


def test_the_root_alone_has_no_name_of_its_own_in_timm() -> None:
    model = create_resnetv2_stem(2, 32, "same", preact=False, conv_layer=CONV)
    state = {f"{AT}.{name}": value for name, value in model.state_dict().items()}
    image_BCHW = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(stem_output(image_BCHW, names=state, read=state.__getitem__), model(image_BCHW), rtol=0, atol=1e-5)


def test_vit_jaxs_stem_is_timms_but_for_what_it_adds() -> None:
    state = {f"{AT}.{name}": value for name, value in timm_stem().state_dict().items()}
    arrays = {_vit_jax_name(name): _vit_jax_value(value) for name, value in state.items()}
    image_BCHW = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    theirs_BCHW = stem_output(image_BCHW, names=state, read=state.__getitem__)
    found_BCHW = stem_output(image_BCHW, names=arrays, read=arrays.__getitem__)
    assert 1e-6 < (found_BCHW - theirs_BCHW).abs().max() < 1e-2 * theirs_BCHW.abs().max()


def test_without_a_stem_it_is_the_image() -> None:
    image_BCHW = torch.randn(1, 2, 8, 8)
    assert stem_output(image_BCHW, names={"embedding/kernel"}, read={}.__getitem__) is image_BCHW


def _vit_jax_name(name: str) -> str:
    parts = name.removeprefix(f"{AT}.").split(".")
    module = {"conv": "conv_root", "norm": "gn_root"}.get(parts[1], "")
    if parts[0] == "stages":
        part = f"{parts[5]}_proj" if parts[4] == "downsample" else parts[4]
        module = f"block{int(parts[1]) + 1}/unit{int(parts[3]) + 1}/{part.replace('norm', 'gn')}"
    leaf = "bias" if parts[-1] == "bias" else "kernel" if "conv" in module.rpartition("/")[2] else "scale"
    return f"{module}/{leaf}"


def _vit_jax_value(value: Tensor) -> Tensor:
    return value.permute(2, 3, 1, 0) if value.ndim == 4 else value
