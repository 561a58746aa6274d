"""Forms: each gives back what it was given, and puts elements where the other project has them."""

import pytest
import torch

from vitscale.config import CheckpointError
from vitscale.weights import forms
from vitscale.weights.forms import Form, Shape, Sizes

SIZES = Sizes(num_channels=3, num_heads=4)
CASES: dict[str, tuple[Form, list[Shape]]] = {
    "same": (forms.SAME, [(3, 5)]),
    "oihw": (forms.OIHW, [(8, 12)]),
    "hwio": (forms.HWIO, [(8, 12)]),
    "transposed": (forms.TRANSPOSED, [(3, 5)]),
    "without batch": (forms.WITHOUT_BATCH, [(1, 3, 5)]),
    "out kernel": (forms.OUT_KERNEL, [(8, 8)]),
    "class and mean": (forms.CLASS_AND_MEAN, [(5, 8)]),
    "as vector": (forms.AS_VECTOR, [(1, 1, 5)]),
    "stacked": (forms.stacked(3), [(6, 2)]),
    "split": (forms.split_at(1, 2), [(2, 3), (4, 3)]),
    "head kernels": (forms.head_kernels(2), [(16, 8)]),
    "head biases": (forms.head_biases(3), [(24,)]),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str) -> None:
    form, shapes = CASES[case]
    ours = [torch.randn(shape) for shape in shapes]
    theirs = form.to_theirs(ours, SIZES)
    back = form.to_ours(theirs, SIZES)
    assert all(torch.equal(value, expected) for value, expected in zip(back, ours, strict=True))
    in_order = torch.equal(torch.cat([value.flatten() for value in theirs]), torch.cat([value.flatten() for value in ours]))
    assert in_order or not form.in_order


def test_kernels_of_heads_multiply_as_the_matrix_does() -> None:
    weight_DD, x_D = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    (kernel_DHK,) = forms.head_kernels(1).to_theirs([weight_DD], SIZES)
    assert torch.allclose(torch.einsum("d,dhk->hk", x_D, kernel_DHK).flatten(), weight_DD @ x_D)
    (out_HKD,) = forms.OUT_KERNEL.to_theirs([weight_DD], SIZES)
    assert torch.allclose(torch.einsum("hk,hkd->d", x_D.view(4, 2), out_HKD), weight_DD @ x_D)


def test_a_head_that_reads_the_mean_as_well_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"--drop 'classifier\.\*'"):
        forms.CLASS_AND_MEAN.to_ours([torch.ones(5, 16)], SIZES)
