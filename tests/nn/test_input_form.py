import numpy as np
import torch

from vitscale.dist.seeding import CounterRng
from vitscale.nn.input_form import PATCH_SIZE_KEY, InputForm


def test_the_mark_of_a_patch_size_is_a_shape_and_draws_nothing() -> None:
    rng = CounterRng(1)
    mark = InputForm(patch_size=12).marks[PATCH_SIZE_KEY].draw(rng, image_size=24)
    assert torch.from_numpy(np.stack([mark, mark, mark])).shape == (3, 12, 0)
    assert rng.bits() == CounterRng(1).bits()


def test_a_model_with_one_patch_size_needs_no_mark() -> None:
    assert InputForm().marks == {}
