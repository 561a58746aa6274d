import pytest
import torch

from vitscale.nn.dropout import Dropout, kept_patches, num_kept_patches, take_patches


def test_drops_a_share_and_scales_the_rest() -> None:
    dropout, x_BND = Dropout(rate=0.25, site=2), torch.ones(4, 50, 40)
    dropped_BND = dropout(x_BND, seed_B=torch.arange(4))
    assert dropped_BND.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped_BND.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropout(x_BND, seed_B=None) is x_BND
    assert Dropout(rate=0.0, site=2)(x_BND, seed_B=torch.arange(4)) is x_BND


def test_the_scale_is_not_rounded_to_the_type_of_the_values() -> None:
    nines_BND = torch.full((2, 8, 8), 9.0, dtype=torch.bfloat16)
    assert Dropout(rate=0.1, site=2)(nines_BND, seed_B=torch.arange(2)).unique().tolist() == [0.0, 10.0]


def test_a_sample_is_dropped_alike_in_any_batch() -> None:
    dropout, x_BND = Dropout(rate=0.5, site=2), torch.randn(4, 6, 8)
    seed_B = torch.tensor([3, 1, 4, 1])
    together = dropout(x_BND, seed_B=seed_B)
    for index in range(4):
        assert torch.equal(dropout(x_BND[index : index + 1], seed_B=seed_B[index : index + 1])[0], together[index])
    assert not torch.equal(dropout(torch.ones(4, 6, 8), seed_B=seed_B), Dropout(rate=0.5, site=3)(torch.ones(4, 6, 8), seed_B=seed_B))


def test_kept_patches_are_the_samples_own_and_evenly_spread() -> None:
    seed_B = torch.arange(2000)
    kept_BK = kept_patches(seed_B, num_patches=10, rate=0.65)
    assert kept_BK.shape == (2000, 3)
    assert (kept_BK.diff(dim=1) > 0).all()
    assert torch.equal(kept_patches(seed_B[7:9], num_patches=10, rate=0.65), kept_BK[7:9])
    counts = kept_BK.flatten().bincount(minlength=10)
    assert (counts - 600).abs().max() < 100  # 4.5 standard deviations of about 22


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 9), (0.5, 4), (0.99, 1)])
def test_at_least_one_patch_is_kept(rate: float, expected: int) -> None:
    assert num_kept_patches(9, rate=rate) == expected


def test_takes_whole_patches() -> None:
    x_BPD = torch.arange(12.0).view(1, 6, 2)
    assert take_patches(x_BPD, torch.tensor([[1, 4]])).tolist() == [[[2.0, 3.0], [8.0, 9.0]]]


def test_a_batch_without_samples_passes() -> None:
    assert Dropout(rate=0.5, site=1)(torch.ones(0, 3, 4), seed_B=torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 4)
