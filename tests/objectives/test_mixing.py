import pytest
import torch

from vitscale.dist.seeding import CounterRng
from vitscale.objectives.mixing import Mixing, mix_images, own_label_shares, soft_targets, swap_pairs

BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.9)


def draws(mixing: Mixing, count: int, *, image_size: int = 16) -> torch.Tensor:
    return torch.stack([torch.from_numpy(mixing.draw(CounterRng(i), image_size=image_size)) for i in range(count)])


def test_batch_equals_its_halves() -> None:
    image_BCHW, label_B, mix_B5 = torch.randn(8, 3, 16, 16), torch.arange(8), draws(BOTH, 8)
    assert (mix_B5[0::2, 0] < 1).any()
    assert (mix_B5[0::2, 2] > 0).any()

    def mixed(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        shares = own_label_shares(mix_B5[part], height=16, width=16)
        return mix_images(image_BCHW[part], mix_B5[part]), soft_targets(label_B[part], shares, num_classes=8)

    whole, halves = mixed(slice(0, 8)), [mixed(slice(0, 4)), mixed(slice(4, 8))]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([half[i] for half in halves]))


def test_equals_a_plain_loop_over_samples() -> None:
    image_BCHW, mix_B5 = torch.randn(8, 2, 16, 16), draws(BOTH, 8)
    mixed, shares = mix_images(image_BCHW, mix_B5), own_label_shares(mix_B5, height=16, width=16)
    for i in range(8):
        partner = image_BCHW[i ^ 1]
        share, top, bottom, left, right = mix_B5[i - i % 2].tolist()
        expected = share * image_BCHW[i] + (1 - share) * partner
        rows, columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        expected[:, rows, columns] = partner[:, rows, columns]
        torch.testing.assert_close(mixed[i], expected)
        assert shares[i].item() == pytest.approx(share if share < 1 else 1 - (bottom - top) * (right - left) / 256)


def test_label_share_is_the_share_of_own_pixels() -> None:
    mix_B5 = draws(Mixing(mixup_alpha=0.0, cutmix_alpha=1.0, probability=1.0), 40)
    image_BCHW = torch.tensor([1.0, 0.0]).repeat(20).view(40, 1, 1, 1).expand(40, 1, 16, 16)
    own = mix_images(image_BCHW, mix_B5)[0::2].mean(dim=(1, 2, 3))
    torch.testing.assert_close(own_label_shares(mix_B5, height=16, width=16)[0::2], own)
    assert own.min() < 0.5
    assert own.max() > 0.7


def test_pair_that_is_not_mixed_stays_as_it_was() -> None:
    image_BCHW, mix_B5 = torch.randn(2, 3, 8, 8) * 1e6, torch.tensor([[1.0, 0, 0, 0, 0], [0.3, 0, 4, 0, 4]])
    assert torch.equal(mix_images(image_BCHW, mix_B5), image_BCHW)
    assert own_label_shares(mix_B5, height=8, width=8).tolist() == [1.0, 1.0]


def test_mixes_in_the_images_type() -> None:
    image_BCHW = torch.randn(4, 3, 16, 16).bfloat16()
    assert mix_images(image_BCHW, draws(BOTH, 4)).dtype == torch.bfloat16


def test_targets_sum_to_one_even_for_equal_labels() -> None:
    targets = soft_targets(torch.tensor([2, 2, 0, 1]), torch.tensor([0.3, 0.3, 0.75, 0.75]), num_classes=3)
    torch.testing.assert_close(targets, torch.tensor([[0, 0, 1], [0, 0, 1], [0.75, 0.25, 0], [0.25, 0.75, 0]]))


def test_odd_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="3 is odd, make it even"):
        swap_pairs(torch.zeros(3, 2))


def test_draws_have_the_distribution_asked_for() -> None:
    mixup = draws(Mixing(mixup_alpha=0.2, cutmix_alpha=0.0, probability=0.5), 2000)
    mixed = mixup[:, 0] < 1
    assert mixed.float().mean().item() == pytest.approx(0.5, abs=0.04)
    shares = mixup[mixed, 0]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)
    assert not mixup[:, 1:].any()


def test_cutmix_boxes_lie_inside_and_take_turns_with_mixup() -> None:
    mix = draws(Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=1.0), 2000, image_size=15)
    boxed = mix[:, 2] > 0
    assert ((mix[:, 0] == 1) == boxed)[mix[:, 0] != 1].all()
    assert (mix[:, 0] == 1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (mix[:, 1:] >= 0).all()
    assert (mix[:, 1:] <= 15).all()
    assert (mix[:, 1] <= mix[:, 2]).all()
    assert (mix[:, 3] <= mix[:, 4]).all()


def test_off_draws_nothing() -> None:
    off = Mixing(mixup_alpha=0.0, cutmix_alpha=0.0, probability=1.0)
    assert not off.is_on
    assert off.draw(CounterRng(0), image_size=8).tolist() == [1, 0, 0, 0, 0]
