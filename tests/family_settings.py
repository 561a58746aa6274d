"""Settings that make a small vision transformer one of another family."""

from typing import Any

MAE: dict[str, Any] = {"pooling": "mean", "class_token": True}
EVA_02: dict[str, Any] = {
    "mlp": "swiglu",
    "mlp_norm": True,
    "qkv_bias": "no_key",
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "rotary": {"kind": "eva02", "pretrained_grid": 3},
}
BEIT: dict[str, Any] = {
    "positions": "none",
    "qkv_bias": "no_key",
    "layer_scale": 0.1,
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "position_bias": {"kind": "relative"},
}
BEIT_SHARED: dict[str, Any] = {**BEIT, "position_bias": {"kind": "relative", "shared": True}}
DINO_V3: dict[str, Any] = {
    "positions": "none",
    "qkv_bias": "no_key",
    "layer_scale": 0.1,
    "num_registers": 4,
    "layer_norm_eps": 1e-5,
    "rotary": {"kind": "dinov3"},
}
SIGLIP_2: dict[str, Any] = {"pooling": "map", "gelu": "tanh"}
CLIP: dict[str, Any] = {"gelu": "quick", "embedding_norm": True, "patch_bias": False, "layer_norm_eps": 1e-5}
MIXED: dict[str, Any] = {"positions": "none", "rotary": {"kind": "mixed"}}
SAM: dict[str, Any] = {"pooling": "mean", "window": 3, "global_blocks": [1], "position_bias": {"kind": "decomposed"}}
