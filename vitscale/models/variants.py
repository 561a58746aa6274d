"""The named sizes of plain vision transformers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and counts of a transformer; the patch size is the other half of a variant's name."""

    width: int
    depth: int
    mlp_width: int
    num_heads: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A size with a patch side, written as in the papers: `S/16`."""

    size: Size
    patch_size: int


# Ti to G: Dosovitskiy et al. 2021, Touvron et al. 2021 and Zhai et al. 2022, as in big_vision's models/vit.py, `decode_variant`.
SIZES: dict[str, Size] = {
    "mu": Size(width=32, depth=1, mlp_width=128, num_heads=2),
    "Ti": Size(width=192, depth=12, mlp_width=768, num_heads=3),
    "S": Size(width=384, depth=12, mlp_width=1536, num_heads=6),
    "M": Size(width=512, depth=12, mlp_width=2048, num_heads=8),
    "B": Size(width=768, depth=12, mlp_width=3072, num_heads=12),
    "L": Size(width=1024, depth=24, mlp_width=4096, num_heads=16),
    "So400m": Size(width=1152, depth=27, mlp_width=4304, num_heads=16),
    "H": Size(width=1280, depth=32, mlp_width=5120, num_heads=16),
    "g": Size(width=1408, depth=40, mlp_width=6144, num_heads=16),
    "g-opt": Size(width=1536, depth=40, mlp_width=6144, num_heads=16),
    "G": Size(width=1664, depth=48, mlp_width=8192, num_heads=16),
    "G-opt": Size(width=1536, depth=48, mlp_width=8192, num_heads=16),
    "e": Size(width=1792, depth=56, mlp_width=15360, num_heads=16),
    # The size of DINOv3's 7B, whose gated MLP has three matrices of 8192; two of 12288 hold as many parameters.
    "7B": Size(width=4096, depth=40, mlp_width=12288, num_heads=32),
    # The size of ViT-22B (Dehghani et al. 2023), as a plain pre-norm model.
    "22B": Size(width=6144, depth=48, mlp_width=24576, num_heads=48),
}


def parse_variant(name: str) -> Variant:
    """`S/16` to the size S with patches of 16. Raises `ValueError` that says what is known."""
    size_name, slash, patch = name.partition("/")
    if size_name not in SIZES:
        raise ValueError(f"{size_name!r} is not a known size; known: {', '.join(SIZES)}")
    if not slash or not patch.isdecimal() or int(patch) < 1:
        raise ValueError(f"{name!r} names no patch size; write it after a slash, for example {size_name}/16")
    return Variant(size=SIZES[size_name], patch_size=int(patch))
