"""The model of a checkpoint from its configuration, and its outputs one block at a time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.oracles import random_classifier
from vitscale.config import ConfigError, dump_yaml
from vitscale.models import ViTConfig
from vitscale.train.stored_model import StoredModel, read_stored_model, streamed_output

SIZES: dict[str, Any] = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "num_channels": 1}
IMAGE = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stored(**sections: Any) -> StoredModel:
    reader: Any = SimpleNamespace(path=Path("run"), config_text=dump_yaml({"name": "x", "model": {"kind": "vit", **SIZES}, **sections}))
    return read_stored_model(reader)


def test_the_sections_that_matter_are_read_and_others_are_not() -> None:
    found = stored(objective={"kind": "supervised", "num_classes": 4}, optim={"of a later version": 1})
    assert (found.model, found.num_classes) == (ViTConfig(**SIZES), 4)
    assert stored().num_classes == 0
    with pytest.raises(ConfigError, match=r"(?s)run/config\.yaml: .*objective\.num_classes"):
        stored(objective={"kind": "supervised"})


@pytest.mark.parametrize("positions", ["learned", "sincos2d_mae"])
def test_outputs_are_those_of_the_whole_model(positions: str) -> None:
    model = ViTConfig(**SIZES, positions=positions)  # type: ignore[arg-type]
    whole = random_classifier(model, num_classes=4)
    weights = dict(whole.named_parameters())
    reads: list[str] = []

    def read(name: str) -> torch.Tensor:
        reads.append(name)
        return weights[name].detach()

    found = streamed_output(
        stored(model=model.model_dump(mode="json"), objective={"kind": "supervised", "num_classes": 4}), read=read, image_BCHW=IMAGE
    )
    with torch.no_grad():
        assert torch.equal(found, whole.predict({"image": IMAGE}))
    assert sorted(reads) == sorted(weights), "each parameter is read once"


def test_without_a_head_it_gives_pooled_features() -> None:
    whole = random_classifier(ViTConfig(**SIZES), num_classes=4)
    weights = {name: value.detach() for name, value in whole.named_parameters()}
    found = streamed_output(stored(), read=weights.__getitem__, image_BCHW=IMAGE)
    with torch.no_grad():
        assert torch.equal(found, whole.backbone(whole.backbone.normalise(IMAGE)).pooled_BD)
