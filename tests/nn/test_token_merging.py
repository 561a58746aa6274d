import pytest
import torch

from tests.token_merging_oracle import joined, merged_groups
from vitscale.nn.block import BlockSpec
from vitscale.nn.context import BlockContext
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid
from vitscale.nn.token_merging import MergingBlock, TokenMergingConfig, match_patches, matching_flops, merge_tokens


@pytest.mark.parametrize(
    ("num_patches", "num_prefix", "wanted"), [(16, 0, 5), (16, 1, 5), (15, 1, 3), (15, 2, 30), (9, 5, 2), (2, 1, 1), (16, 0, 8)]
)
def test_merges_what_the_paper_merges(num_patches: int, num_prefix: int, wanted: int) -> None:
    generator = torch.Generator().manual_seed(num_patches + wanted)
    key, x = (torch.randn(3, num_prefix + num_patches, width, generator=generator) for width in (4, 6))
    sizes = torch.randint(1, 5, x.shape[:2], generator=generator).float()
    matching = match_patches(key, num_prefix=num_prefix, num_merged=wanted)
    found = merge_tokens(x, sizes, matching=matching, num_prefix=num_prefix)
    for index in range(3):
        groups = merged_groups(key[index].double().tolist(), num_prefix=num_prefix, wanted=wanted)
        expected_MD, expected_M = joined(x[index], sizes[index], groups=groups)
        torch.testing.assert_close(found.x_BND[index], expected_MD, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.sizes_BN[index], expected_M)
    assert (found.sizes_BN.sum(dim=1) == sizes.sum(dim=1)).all()


def test_of_equal_pairs_the_earlier_sources_are_merged() -> None:
    matching = match_patches(torch.ones(1, 9, 4), num_prefix=1, num_merged=2)
    assert matching.source_BR.tolist() == [[0, 1]]
    assert matching.target_BR.tolist() == [[0, 0]]
    assert matching.unmerged_BU.tolist() == [[2, 3]]


def test_one_patch_is_merged_with_nothing() -> None:
    assert match_patches(torch.ones(1, 2, 4), num_prefix=1, num_merged=3) is None
    assert match_patches(torch.ones(1, 9, 4), num_prefix=1, num_merged=0) is None


def test_pairs_that_are_compared() -> None:
    assert [matching_flops(n, head_width=3) for n in (1, 2, 5)] == [0, 6, 36]


def test_schedules_merge_equally_many() -> None:
    wanted = {schedule: TokenMergingConfig(per_block=6, schedule=schedule).wanted(depth=4) for schedule in ("constant", "decreasing")}
    assert wanted == {"constant": (6, 6, 6, 6), "decreasing": (12, 8, 4, 0)}
    assert TokenMergingConfig(per_block=6, schedule="decreasing").wanted(depth=1) == (12,)


@pytest.mark.parametrize(("per_block", "depth"), [(11, 12), (8, 12), (23, 24), (6, 13)])
def test_a_decreasing_schedule_is_rounded_as_the_authors_round_it(per_block: int, depth: int) -> None:
    """`parse_r` of facebookresearch/ToMe (tome/utils.py) with an inflection of -1: 22 (1 - 9/11) is 4, never 3.999."""
    step = -2 * per_block / (depth - 1)
    expected = tuple(int(2 * per_block + step * index) for index in range(depth))
    assert TokenMergingConfig(per_block=per_block, schedule="decreasing").wanted(depth=depth) == expected


SPEC = BlockSpec(width=16, num_heads=2, mlp_width=32)


def block(**changes: object) -> MergingBlock:
    arguments = {"index": 0, "num_merged": 0, "is_proportional": True, **changes}
    return materialise(MergingBlock(arguments.pop("spec", SPEC), **arguments), seed=0)


CONTEXT = BlockContext(grid=Grid(rows=2, columns=2), num_prefix=1)


def test_a_token_draws_attention_as_the_patches_that_it_stands_for_would() -> None:
    """Equal tokens merged into one leave the others' results as they were."""
    x_BND = torch.randn(2, 5, 16)
    twice_BND = torch.cat([x_BND, x_BND[:, 3:4]], dim=1)
    expected = block()(twice_BND, context=CONTEXT).x_BND[:, :5]
    sizes_BN = torch.tensor([[1.0, 1, 1, 2, 1]]).expand(2, -1)
    torch.testing.assert_close(block()(x_BND, context=CONTEXT, sizes_BN=sizes_BN).x_BND, expected)
    plain = block(is_proportional=False)(x_BND, context=CONTEXT, sizes_BN=sizes_BN).x_BND
    assert (plain - expected).abs().max() > 1e-3


def test_samples_that_drop_a_branch_are_merged_by_their_keys_as_well() -> None:
    generator = torch.Generator().manual_seed(0)
    x_BND = torch.randn(4, 9, 16, generator=generator)
    spec = BlockSpec(width=16, num_heads=2, mlp_width=32, drop_rate=0.5)
    context = BlockContext(grid=Grid(rows=2, columns=4), num_prefix=1, kept=(torch.tensor([1, 2]), torch.tensor([0, 1])))
    merging = block(spec=spec, num_merged=3)
    found = merging(x_BND, context=context)
    key_BNK = merging.attn.heads(merging.norm1(x_BND))[1].mean(dim=2)
    undropped = merge_tokens(x_BND, None, matching=match_patches(key_BNK, num_prefix=1, num_merged=3), num_prefix=1)
    assert torch.equal(found.x_BND[3], undropped.x_BND[3])  # drops both branches
    for sample in (0, 1, 2):
        assert (found.x_BND[sample] - undropped.x_BND[sample]).abs().max() > 1e-3
    assert found.x_BND.shape == (4, 6, 16)
