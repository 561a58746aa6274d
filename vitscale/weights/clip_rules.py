"""The rules of CLIP's image towers: Hugging Face's and open_clip's, which has OpenAI's names."""

from vitscale.weights.forms import AS_VECTOR, OIHW, PROJECTION, WITHOUT_BATCH, Sizes
from vitscale.weights.rule import BLOCK, CLASS_TOKEN, POSITIONS, Rule, both, one
from vitscale.weights.vit_rules import hf_siglip

TOWER = "visual"


def hf_clip(sizes: Sizes) -> list[Rule]:
    """transformers' CLIP, its vision part: SigLIP's names, with a class token and a norm before the blocks."""
    root = "vision_model"
    return [
        one(CLASS_TOKEN, f"{root}.embeddings.class_embedding", form=AS_VECTOR),
        *both("backbone.embedding_norm", f"{root}.pre_layrnorm"),
        *hf_siglip(sizes),
    ]


def open_clip(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """mlfoundations/open_clip, `VisionTransformer`, and openai/CLIP."""
    block = f"{TOWER}.transformer.resblocks.{{i}}"
    modules = {"norm1": "ln_1", "attn.proj": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    return [
        one(CLASS_TOKEN, f"{TOWER}.class_embedding", form=AS_VECTOR),
        one(POSITIONS, f"{TOWER}.positional_embedding", form=WITHOUT_BATCH),
        *both("backbone.patch_embed", f"{TOWER}.conv1", form=OIHW),
        *both("backbone.embedding_norm", f"{TOWER}.ln_pre"),
        *both(f"{BLOCK}.attn.qkv", f"{block}.attn.in_proj", ends=("_weight", "_bias")),
        *(rule for ours, theirs in modules.items() for rule in both(f"{BLOCK}.{ours}", f"{block}.{theirs}")),
        *both("backbone.norm", f"{TOWER}.ln_post"),
        Rule(ours=("head.fc.weight", "head.fc.bias"), theirs=(f"{TOWER}.proj",), form=PROJECTION),
    ]
