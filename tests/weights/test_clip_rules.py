"""Rules of CLIP; tests/train/test_import_weights.py and test_weight_families.py let the projects' own code read the names."""

import torch

from vitscale.weights.forms import Sizes
from vitscale.weights.names import plan_conversions

SIZES = Sizes(num_channels=3, num_heads=4)


def test_a_projection_becomes_a_head_with_a_bias_of_zeros() -> None:
    (conversion,) = plan_conversions({"head.fc.weight": (5, 8), "head.fc.bias": (5,)}, layout="open_clip", sizes=SIZES)
    assert conversion.theirs == {"visual.proj": (8, 5)}
    projection = torch.randn(8, 5)
    ours = conversion.to_ours([projection])
    assert torch.equal(ours["head.fc.weight"], projection.T)
    assert torch.equal(ours["head.fc.bias"], torch.zeros(5))


def test_class_token_and_positions_lose_their_axes_of_length_one() -> None:
    for layout in ("open_clip", "hf_clip"):
        found = plan_conversions({"backbone.cls_token": (1, 1, 8), "backbone.pos_embed": (1, 5, 8)}, layout=layout, sizes=SIZES)
        assert [shape for conversion in found for shape in conversion.theirs.values()] == [(8,), (5, 8)]
