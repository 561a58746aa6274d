"""Token merging by appendix D of Bolya et al. 2023, one token after the other, and timm's ViT with it."""

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

Group = list[int]


def merged_groups(key: list[list[float]], *, num_prefix: int, wanted: int) -> list[Group]:
    """The tokens that each token left stands for, in the order in which they are left."""
    patches = range(num_prefix, len(key))
    sources, targets = [n for n in patches if n % 2 == 0], [n for n in patches if n % 2 == 1]

    def cosine(a: int, b: int) -> float:
        return sum(p * q for p, q in zip(key[a], key[b], strict=True)) / math.hypot(*key[a]) / math.hypot(*key[b])

    best = {source: max(targets, key=lambda target: cosine(source, target)) for source in sources}
    by_similarity = sorted(sources, key=lambda source: -cosine(source, best[source]))
    count = min(wanted, len(patches) // 2)
    merged, unmerged = by_similarity[:count], by_similarity[count:]
    alone = [[n] for n in [*range(num_prefix), *(sorted(unmerged) if num_prefix else unmerged)]]
    return alone + [[target, *(source for source in merged if best[source] == target)] for target in targets]


def joined(x_ND: Tensor, sizes_N: Tensor, *, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Means by size, and sizes, of groups of one image's tokens."""
    sizes = [sizes_N[group].sum() for group in groups]
    means = [(x_ND[group] * sizes_N[group, None]).sum(dim=0) / size for group, size in zip(groups, sizes, strict=True)]
    return torch.stack(means), torch.stack(sizes)


def timm_merging_features(model: VisionTransformer, image_BCHW: Tensor, *, wanted: tuple[int, ...], proportional: bool) -> Tensor:
    """The class token (B, D) after timm's own layers, with tokens merged between attention and MLP, image by image."""
    prefix = model.num_prefix_tokens
    embedded_BND = model._pos_embed(model.patch_embed(image_BCHW))
    found = []
    for x_ND in embedded_BND:
        sizes_N = torch.ones(len(x_ND))
        for block, count in zip(model.blocks, wanted, strict=True):
            attention = block.attn
            q_HNK, k_HNK, v_HNK = attention.qkv(block.norm1(x_ND)).unflatten(-1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
            scores_HNN = q_HNK @ k_HNK.transpose(1, 2) * attention.head_dim**-0.5 + (sizes_N.log() if proportional else 0)
            mixed_ND = (scores_HNN.softmax(dim=-1) @ v_HNK).transpose(0, 1).flatten(1)
            x_ND = x_ND + block.ls1(attention.proj(mixed_ND))
            groups = merged_groups(k_HNK.mean(dim=0).tolist(), num_prefix=prefix, wanted=count)
            x_ND, sizes_N = joined(x_ND, sizes_N, groups=groups)
            x_ND = x_ND + block.ls2(block.mlp(block.norm2(x_ND)))
        found.append(model.norm(x_ND)[0])
    return torch.stack(found)
