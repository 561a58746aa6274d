"""Settings of NaFlex: the forms of its batches, what is planned for, what it does not go with."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig
from vitscale.models.flops import forward_flops
from vitscale.nn.input_form import InputForm, PatchSequence

SIDE = 4
NAFLEX = {
    "image_size": 24,
    "patch_size": SIDE,
    "num_channels": 2,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "pooling": "mean",
    "resampling": "naflex",
    "naflex": {"sequence_lengths": [24, 36]},
}


def test_forms_shape_and_flops_are_those_of_the_longest_sequence() -> None:
    config = ViTConfig.model_validate({**NAFLEX, "naflex": {"sequence_lengths": [24, 40], "least_share": 0.5}, "num_registers": 1})
    forms = [PatchSequence(length=length, patch_size=SIDE, least_share=0.5) for length in (24, 40)]
    assert config.input_forms == tuple(InputForm(sequence=form) for form in forms)
    assert config.eval_form == InputForm(sequence=PatchSequence(length=40, patch_size=SIDE))
    assert (config.shape.num_tokens, config.shape.num_positions) == (41, 36)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        config.build()(torch.empty(3, 2, 40 * SIDE, SIDE))
    assert counter.get_total_flops() == 3 * forward_flops(config.shape)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"naflex": {"sequence_lengths": []}}, "naflex"),
        ({"naflex": {"sequence_lengths": [9, 9]}}, "give each once"),
        ({"naflex": {"sequence_lengths": [9], "least_share": 0.0}}, "least_share"),
        ({"flexible_patches": [4, 8]}, r"model\.flexible_patches is for sizes of patches"),
        ({"window": 3}, r"model\.window is for windows of a grid"),
        ({"patch_dropout": 0.5}, r"model\.patch_dropout is for a fixed number"),
        ({"rotary": {"kind": "mixed"}}, r"model\.rotary mixed learns"),
        ({"rotary": {"kind": "dinov3", "jitter": 1.5}}, r"model\.rotary draws"),
        ({"token_merging": {"per_block": 1}}, r"model\.token_merging is for a fixed"),
        ({"stem": {"kind": "convolutions", "widths": [8]}}, r"model\.stem convolutions sees across patches"),
        ({"position_bias": {"kind": "decomposed"}}, r"model\.position_bias is for a bias"),
    ],
)
def test_settings_that_do_not_go_with_sequences_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decode(ViTConfig, values={**NAFLEX, **changes}, source="test")
