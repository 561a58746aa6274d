import inspect

import torch
from torch import nn

from vitscale.models import MODELS, Backbone
from vitscale.models.base import run_block


def test_run_block_calls_the_block() -> None:
    x_BND = torch.ones(1, 2, 3)
    assert torch.equal(run_block(0, nn.Softmax(dim=-1), x_BND), x_BND.softmax(-1))


def test_every_model_of_the_table_offers_the_interface() -> None:
    for config_class in MODELS.values():
        backbone = inspect.signature(config_class.build).return_annotation
        with torch.device("meta"):
            model = config_class.model_validate({"variant": "mu/8", "image_size": 16}).build()
        assert isinstance(model, Backbone), backbone
        assert len(model.blocks) > 0
        assert (model.width, model.image_size, model.patch_size, model.num_channels) == (32, 16, 8, 3)
