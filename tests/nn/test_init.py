import pytest
import torch
from torch import nn

from vitscale.nn.init import (
    Init,
    constant,
    initial_value,
    lecun_normal,
    materialise,
    normal,
    set_init,
    trunc_normal,
    xavier_uniform,
    zeros,
)


def drawn(init: Init, *shape: int, name: str = "weight", seed: int = 0) -> torch.Tensor:
    return initial_value(set_init(nn.Parameter(torch.empty(0)), init), name=name, shape=shape, seed=seed)


def test_constants() -> None:
    assert drawn(zeros(), 2).tolist() == [0.0, 0.0]
    assert drawn(constant(-3.5), 2).tolist() == [-3.5, -3.5]


def test_normal() -> None:
    value = drawn(normal(0.1), 200, 200)
    assert value.std().item() == pytest.approx(0.1, rel=0.02)
    assert value.abs().max() > 0.3


def test_trunc_normal_is_cut_at_two_standard_deviations() -> None:
    assert 0.19 < drawn(trunc_normal(0.1), 200, 200).abs().max() <= 0.2


def test_lecun_normal_has_variance_one_over_fan_in_after_the_cut() -> None:
    assert drawn(lecun_normal(400), 200, 400).std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("stack", [1, 3])
def test_xavier_uniform_sees_each_stacked_matrix(stack: int) -> None:
    value = drawn(xavier_uniform(stack=stack), 96, 50)
    bound = (6 / (96 / stack + 50)) ** 0.5
    for part in value.chunk(stack):
        assert 0.98 * bound < part.abs().max() <= bound


def test_value_depends_on_seed_and_name_only() -> None:
    value = drawn(normal(1.0), 5)
    torch.manual_seed(123)
    assert torch.equal(drawn(normal(1.0), 5), value)
    assert not torch.equal(drawn(normal(1.0), 5, seed=1), value)
    assert not torch.equal(drawn(normal(1.0), 5, name="other"), value)


def test_values_stay_the_same_over_releases() -> None:
    # A run started today must start alike tomorrow; these come from the first release.
    torch.testing.assert_close(drawn(normal(1.0), 3), torch.tensor([-0.759659, -0.933500, -0.781625]), rtol=0, atol=1e-6)


def test_parameter_without_a_recipe_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"head\.weight has no init recipe"):
        initial_value(nn.Parameter(torch.empty(1)), name="head.weight", shape=(1,), seed=0)


def test_materialise_fills_a_model_from_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2), nn.ModuleDict({"inner": nn.Linear(2, 2)}))
    for parameter in model.parameters():
        set_init(parameter, normal(1.0))
    model[0].bias.requires_grad_(False)
    materialise(model, seed=4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, initial_value(parameter, name=name, shape=parameter.shape, seed=4)), name
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
