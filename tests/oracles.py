"""Independent implementations of the plain ViT with our weights copied in: timm and Hugging Face."""

from functools import partial

import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTConfig as HuggingFaceViTConfig
from transformers import ViTForImageClassification

from vitscale.models import ViTConfig
from vitscale.nn.init import materialise
from vitscale.objectives import Supervised, SupervisedConfig


def random_classifier(config: ViTConfig, *, num_classes: int, seed: int = 0) -> Supervised:
    """A classifier in which no parameter has a value that could hide an error: no zero head, no identity norm."""
    objective = materialise(SupervisedConfig(num_classes=num_classes).build(config.build()), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in objective.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert isinstance(objective, Supervised)
    return objective


class TimmOracle:
    """timm's VisionTransformer of a configuration, and where each of our parameters' gradient is found in it."""

    def __init__(self, config: ViTConfig, ours: Supervised) -> None:
        self.model = timm_model(config, num_classes=ours.num_classes)
        state = {self._name(name): value.detach() for name, value in ours.named_parameters()}
        convolution = self.model.patch_embed.proj.weight
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(convolution.shape)
        self.model.load_state_dict(state)

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(image_BCHW)

    def gradient(self, name: str) -> Tensor:
        return self.model.get_parameter(self._name(name)).grad

    def _name(self, name: str) -> str:
        name = _timm_name(name)
        return name.replace("norm.", "fc_norm.") if name.startswith("norm.") and not isinstance(self.model.fc_norm, nn.Identity) else name


def timm_model(config: ViTConfig, *, num_classes: int) -> VisionTransformer:
    """timm's own class with the settings of a configuration; its weights are random."""
    shape, is_gated = config.shape, config.mlp != "gelu"
    settings = {
        "img_size": shape.image_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.num_channels,
        "num_classes": num_classes,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        # timm counts gate and value as the hidden width.
        "mlp_ratio": shape.mlp_width * (2 if is_gated else 1) / shape.width,
        "mlp_layer": SwiGLUPacked if is_gated else Mlp,
        "act_layer": "silu" if is_gated else {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}[config.gelu],
        "pre_norm": config.embedding_norm,
        "norm_layer": partial(nn.LayerNorm if config.norm == "layer" else nn.RMSNorm, eps=config.layer_norm_eps),
        "class_token": shape.class_token,
        "no_embed_class": not config.prefix_positions,
        "reg_tokens": config.num_registers,
        "pos_embed": "none" if config.positions == "none" else "learn",
        "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[config.pooling],
        "fc_norm": config.norm_place == "pooled",
        "qkv_bias": config.qkv_bias == "all",
        "proj_bias": config.proj_bias,
        "qk_norm": config.qk_norm,
        "scale_mlp_norm": config.mlp_norm,
        "init_values": config.layer_scale,
    }
    return (VisionTransformerDistilled if config.distillation_token else VisionTransformer)(**settings)


def _timm_name(name: str) -> str:
    name = name.removeprefix("backbone.").replace("patch_embed.", "patch_embed.proj.").replace("embedding_norm.", "norm_pre.")
    return name.replace("head.fc.", "head.").replace("head_dist.fc.", "head_dist.")


class HuggingFaceOracle:
    """transformers' ViTForImageClassification of a configuration with a class token, with separate query, key and value."""

    def __init__(self, config: ViTConfig, ours: Supervised) -> None:
        shape = config.shape
        self.model = ViTForImageClassification(
            HuggingFaceViTConfig(
                hidden_size=shape.width,
                num_hidden_layers=shape.depth,
                num_attention_heads=shape.num_heads,
                intermediate_size=shape.mlp_width,
                hidden_act="gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
                image_size=shape.image_size,
                patch_size=shape.patch_size,
                num_channels=shape.num_channels,
                num_labels=ours.num_classes,
                layer_norm_eps=config.layer_norm_eps,
            )
        )
        seen = set()
        with torch.no_grad():
            for name, value in ours.named_parameters():
                targets = _hugging_face_names(name)
                for target, part in zip(targets, value.chunk(len(targets)), strict=True):
                    parameter = self.model.get_parameter(target)
                    parameter.copy_(part.reshape(parameter.shape))
                    seen.add(target)
        assert seen == {name for name, _ in self.model.named_parameters()}, "a parameter was left as it was drawn"

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(pixel_values=image_BCHW, interpolate_pos_encoding=True).logits

    def gradient(self, name: str) -> Tensor:
        return torch.cat([self.model.get_parameter(target).grad for target in _hugging_face_names(name)])


_HUGGING_FACE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _hugging_face_names(name: str) -> list[str]:
    """One name, or three for the fused query, key and value."""
    name = name.removeprefix("backbone.")
    if name in _HUGGING_FACE:
        return [_HUGGING_FACE[name]]
    module, _, leaf = name.rpartition(".")
    if module == "head.fc":
        return [f"classifier.{leaf}"]
    if not module.startswith("blocks."):
        return [f"{_HUGGING_FACE[module]}.{leaf}"]
    _, index, part = module.split(".", maxsplit=2)
    if part == "attn.qkv":
        return [f"vit.layers.{index}.attention.{letter}_proj.{leaf}" for letter in "qkv"]
    return [f"vit.layers.{index}.{_HUGGING_FACE[part]}.{leaf}"]
