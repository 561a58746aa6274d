import pytest
import torch

from vitscale.nn.head import ClassificationHead
from vitscale.nn.init import materialise


@pytest.mark.parametrize("pre_logits_width", [None, 5])
def test_starts_at_the_bias_for_any_input(pre_logits_width: int | None) -> None:
    head = ClassificationHead(width=8, num_classes=3, pre_logits_width=pre_logits_width, bias_init=-10.0)
    assert torch.equal(materialise(head, seed=0)(torch.randn(2, 8)), torch.full((2, 3), -10.0))


def test_pre_logits_are_tanh_of_a_linear_layer() -> None:
    head = materialise(ClassificationHead(width=8, num_classes=3, pre_logits_width=5, bias_init=0.0), seed=0)
    torch.nn.init.normal_(head.fc.weight)
    pooled_BD = torch.randn(2, 8)
    assert torch.equal(head(pooled_BD), head.fc(head.pre_logits(pooled_BD).tanh()))
    assert head.fc.weight.shape == (3, 5)


def test_parameter_names() -> None:
    plain = ClassificationHead(width=8, num_classes=3, pre_logits_width=None, bias_init=0.0)
    deep = ClassificationHead(width=8, num_classes=3, pre_logits_width=5, bias_init=0.0)
    assert set(plain.state_dict()) == {"fc.weight", "fc.bias"}
    assert set(deep.state_dict()) == {"fc.weight", "fc.bias", "pre_logits.weight", "pre_logits.bias"}
