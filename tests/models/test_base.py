import pytest
import torch
from torch import nn

from vitscale.models import MODELS, Backbone
from vitscale.models.base import run_block


def test_run_block_calls_the_block() -> None:
    x_BND = torch.ones(1, 2, 3)
    assert torch.equal(run_block(0, nn.Softmax(dim=-1), x_BND), x_BND.softmax(-1))


SMALL = {
    "vit": {"variant": "mu/8", "image_size": 16},
    "swin": {"width": 16, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 8, "image_size": 16},
    "hiera": {"width": 16, "depths": (1, 1), "num_heads": 1, "patch_size": 4, "image_size": 16},
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_of_the_table_offers_the_interface(kind: str) -> None:
    config = MODELS[kind].model_validate(SMALL[kind])
    with torch.device("meta"):
        model = config.build()
    assert isinstance(model, Backbone)
    assert len(model.blocks) == len(config.shape.blocks) > 0
    assert (model.width, model.image_size, model.patch_size, model.num_channels) == (32, 16, 8, 3)
