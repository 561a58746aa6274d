"""Prints the table of hierarchies in docs/models.md: `python -m tests.hierarchies_table`."""

from tests.conftest import pytest_configure

pytest_configure()

import torch  # noqa: E402  (what it imports is set up first)
import torch.nn.functional as F  # noqa: E402

from tests.hiera_oracles import HuggingFaceHieraOracle, TimmHieraOracle  # noqa: E402
from tests.models import test_hiera, test_swin  # noqa: E402
from tests.swin_oracles import HuggingFaceSwinOracle, TimmSwinOracle  # noqa: E402
from vitscale.objectives import Supervised  # noqa: E402

OWN, OTHER = (16, 16), (24, 16)


def swin(version: int, kind: type, *, size: tuple[int, int]) -> str:
    """Differences of Swin or SwinV2, windows padded where the maps are no multiples of them."""
    model = test_swin.config(version=version, window_size=3, window_padding="after_shift" if kind is TimmSwinOracle else "before_shift")
    ours = test_swin.classifier(model)
    theirs = kind(model, ours, dynamic=True) if kind is TimmSwinOracle else kind(model, ours)
    return differences(ours, theirs, images=test_swin.images(*size))


def hiera(kind: type, *, size: tuple[int, int], abswin: bool) -> str:
    """Differences of Hiera, with or without a table of positions for the units."""
    model = test_hiera.config(**(test_hiera.ABSWIN if abswin else {}))
    ours = test_hiera.classifier(model)
    theirs = kind(model, ours, size=size) if kind is TimmHieraOracle else kind(model, ours)
    return differences(ours, theirs, images=test_hiera.images(*size))


def differences(ours: Supervised, theirs: TimmSwinOracle | TimmHieraOracle, *, images: torch.Tensor) -> str:
    """Largest difference of the logits, and of the gradients relative to the largest of their parameter."""
    label_B = torch.tensor([0, 6, 3])
    our_BK, their_BK = ours.head(ours.backbone(images).pooled_BD), theirs.logits(images)
    assert their_BK.abs().max() > 0.1
    for logits_BK in (our_BK, their_BK):
        F.cross_entropy(logits_BK, label_B).backward()
    found = []
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name, parameter) if hasattr(theirs, "theirs") else theirs.gradient(name).reshape(parameter.shape)
        found.append(float((parameter.grad - expected).abs().max() / expected.abs().max()))
    return f"{float((our_BK - their_BK).detach().abs().max()):.0e} | {max(found):.0e}"


if __name__ == "__main__":
    print("| family | oracle | logits | gradient | logits, other size | gradient, other size |")
    print("|---|---|---|---|---|---|")
    for version, name in ((1, "Swin"), (2, "SwinV2")):
        both = [swin(version, TimmSwinOracle, size=size) for size in (OWN, OTHER)]
        print(f"| {name} | timm | {both[0]} | {both[1]} |")
        print(f"| {name} | transformers | {swin(version, HuggingFaceSwinOracle, size=OWN)} | - | - |")
    own = hiera(TimmHieraOracle, size=OWN, abswin=False)
    print(f"| Hiera | timm | {own} | - | - |")
    both = [hiera(HuggingFaceHieraOracle, size=size, abswin=False) for size in (OWN, OTHER)]
    print(f"| Hiera | transformers | {both[0]} | {both[1]} |")
    both = [hiera(TimmHieraOracle, size=size, abswin=True) for size in (OWN, OTHER)]
    print(f"| Hiera, positions of units | timm | {both[0]} | {both[1]} |")
