import numpy as np
import torch

from vitscale.dist.seeding import CounterRng
from vitscale.nn.counter_hash import SeedSource, hash_bits, sample_bits, threshold


def test_the_hash_is_a_bijection_in_32_bits() -> None:
    found = hash_bits(torch.cat([torch.arange(200_000), 2**32 - 1 - torch.arange(200_000)]))
    assert found.unique().numel() == 400_000
    assert found.min() >= 0
    assert found.max() < 2**32
    expected = 12345
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        expected = ((expected ^ (expected >> shift)) * factor) % 2**32
    assert hash_bits(torch.tensor([12345])).item() == expected ^ (expected >> 15)


def test_numbers_and_tensors_have_the_same_hash() -> None:
    assert hash_bits(torch.tensor([0, 12345, 2**32 - 1])).tolist() == [hash_bits(value) for value in (0, 12345, 2**32 - 1)]


def test_bits_depend_on_seed_site_and_place_and_on_nothing_else() -> None:
    seed_B = torch.tensor([5, 9, 5])
    bits_BV = sample_bits(seed_B, site=3, num_values=1000)
    assert torch.equal(bits_BV[0], bits_BV[2])
    assert torch.equal(sample_bits(seed_B[1:2], site=3, num_values=500)[0], bits_BV[1, :500])
    others = torch.cat([bits_BV[:2], sample_bits(seed_B[:2], site=4, num_values=1000)])
    assert (torch.corrcoef(others.double()) - torch.eye(4)).abs().max() < 0.15
    assert abs((bits_BV < threshold(0.25)).float().mean().item() - 0.25) < 0.03


def test_a_seed_is_32_bits_of_the_samples_own_draw() -> None:
    seeds = [SeedSource().draw(CounterRng(0, sample), image_size=8) for sample in range(50)]
    assert all(seed.dtype == np.int64 and seed.shape == () and 0 <= seed < 2**32 for seed in seeds)
    assert len({int(seed) for seed in seeds}) == 50
