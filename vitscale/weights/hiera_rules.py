"""The rules of Hiera in timm, whose names are ours but for the norm, which its head has, and the tables of positions."""

from vitscale.weights.forms import AS_MAP, SAME, Sizes
from vitscale.weights.rule import BLOCK, POSITIONS, Rule, both, one


def timm_hiera(sizes: Sizes) -> list[Rule]:
    """timm's Hiera; where it has two tables, they are maps."""
    modules = ("norm1", "proj", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [
        one(POSITIONS, "pos_embed", form=AS_MAP if sizes.has_two_tables else SAME),
        one("backbone.window_pos_embed", "pos_embed_win", form=AS_MAP),
        *both("backbone.patch_embed.proj", "patch_embed.proj"),
        *(rule for module in modules for rule in both(f"{BLOCK}.{module}", f"blocks.{{i}}.{module}")),
        *(one(f"{BLOCK}.ls{number}.gamma", f"blocks.{{i}}.ls{number}.gamma") for number in (1, 2)),
        *both("backbone.norm", "head.norm"),
        *both("head.fc", "head.fc"),
    ]
