"""Rules of Hiera; tests/train/test_weight_families.py lets timm read the names."""

import torch

from vitscale.weights.forms import Sizes
from vitscale.weights.names import plan_conversions


def test_two_tables_are_maps_and_one_is_not() -> None:
    for has_two_tables, expected in ((True, (1, 8, 3, 3)), (False, (1, 9, 8))):
        sizes = Sizes(num_channels=3, num_heads=1, has_two_tables=has_two_tables)
        (conversion,) = plan_conversions({"backbone.pos_embed": (1, 9, 8)}, layout="timm_hiera", sizes=sizes)
        value = torch.randn(1, 9, 8)
        assert conversion.theirs == {"pos_embed": expected}
        assert torch.equal(conversion.to_ours(list(conversion.to_theirs([value]).values()))["backbone.pos_embed"], value)
