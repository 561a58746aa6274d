"""Independent implementations of Swin and SwinV2 with our weights copied in: timm and Hugging Face."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from transformers import SwinConfig as HuggingFaceSwinConfig
from transformers import SwinForImageClassification, Swinv2Config, Swinv2ForImageClassification

from vitscale.models import SwinConfig
from vitscale.objectives import Supervised


class SwinOracle(ABC):
    """A model of another library, and where each of our parameters' gradient is found in it."""

    def __init__(self, model: nn.Module, config: SwinConfig, ours: Supervised) -> None:
        self.model = model
        self.starts = list(accumulate((stage.depth for stage in config.shape.stages), initial=0))
        seen = set()
        with torch.no_grad():
            for name, value in ours.named_parameters():
                targets = self.names(name)
                for target, part in zip(targets, value.chunk(len(targets)), strict=True):
                    parameter = model.get_parameter(target)
                    parameter.copy_(part.reshape(parameter.shape))
                    seen.add(target)
        assert seen == {name for name, _ in model.named_parameters()}, "a parameter was left as it was drawn"

    @abstractmethod
    def names(self, name: str) -> list[str]:
        """What our parameter is called in the other library: one name, or three for the fused query, key and value."""

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(image_BCHW)

    def gradient(self, name: str) -> Tensor:
        return torch.cat([self.model.get_parameter(target).grad for target in self.names(name)])

    def split(self, name: str) -> tuple[str, str]:
        """`blocks.5.attn.qkv.weight` to the stage and the number in it as `1.blocks.3`, and the rest; other names as they are."""
        name = name.removeprefix("backbone.")
        if not name.startswith("blocks."):
            return "", name
        _, number, rest = name.split(".", maxsplit=2)
        stage = bisect_right(self.starts, int(number)) - 1
        return f"{stage}.blocks.{int(number) - self.starts[stage]}", rest


class TimmSwinOracle(SwinOracle):
    """timm's SwinTransformer or SwinTransformerV2, which takes images of any size where `dynamic`."""

    def __init__(self, config: SwinConfig, ours: Supervised, *, dynamic: bool = False) -> None:
        shape = config.shape
        pretrained = {} if config.version == 1 else {"pretrained_window_sizes": config.pretrained_window_sizes or (0,) * len(shape.stages)}
        kind = SwinTransformer if config.version == 1 else SwinTransformerV2
        model = kind(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            in_chans=shape.num_channels,
            num_classes=ours.num_classes,
            embed_dim=shape.stages[0].width,
            depths=tuple(stage.depth for stage in shape.stages),
            num_heads=tuple(stage.num_heads for stage in shape.stages),
            window_size=config.window_size,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=0.0,
            dynamic_img_size=dynamic,
            **pretrained,
        )
        super().__init__(model, config, ours)

    def names(self, name: str) -> list[str]:
        place, rest = self.split(name)
        if place:
            for ours, theirs in _TIMM_BLOCK.items():
                rest = rest.replace(ours, theirs)
            return [f"layers.{place}.{rest}"]
        rest = rest.replace("patch_embed.", "patch_embed.proj.").replace("patch_norm.", "patch_embed.norm.")
        if rest.startswith("merges."):
            _, stage, leaf = rest.split(".", maxsplit=2)
            return [f"layers.{int(stage) + 1}.downsample.{leaf}"]
        return [rest]


_TIMM_BLOCK = {
    "position_bias.table": "relative_position_bias_table",
    "position_bias.fc1": "cpb_mlp.0",
    "position_bias.fc2": "cpb_mlp.2",
    "qkv.q_bias": "q_bias",
    "qkv.v_bias": "v_bias",
}


class HuggingFaceSwinOracle(SwinOracle):
    """transformers' SwinForImageClassification or Swinv2ForImageClassification, with separate query, key and value."""

    def __init__(self, config: SwinConfig, ours: Supervised) -> None:
        shape = config.shape
        settings = {
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "num_channels": shape.num_channels,
            "num_labels": ours.num_classes,
            "embed_dim": shape.stages[0].width,
            "depths": [stage.depth for stage in shape.stages],
            "num_heads": [stage.num_heads for stage in shape.stages],
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
            "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
            "drop_path_rate": 0.0,
        }
        self.prefix = "swin" if config.version == 1 else "swinv2"
        if config.version == 1:
            model: nn.Module = SwinForImageClassification(HuggingFaceSwinConfig(**settings))
        else:
            if config.pretrained_window_sizes:
                settings["pretrained_window_sizes"] = list(config.pretrained_window_sizes)
            model = Swinv2ForImageClassification(Swinv2Config(**settings))
        super().__init__(model, config, ours)

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(pixel_values=image_BCHW).logits

    def names(self, name: str) -> list[str]:
        place, rest = self.split(name)
        module, _, leaf = rest.rpartition(".")
        if place:
            return [f"{self.prefix}.encoder.layers.{place}.{target}" for target in self._block_names(module, leaf)]
        if module == "head.fc":
            return [f"classifier.{leaf}"]
        if module.startswith("merges."):
            _, stage, part = module.split(".")
            return [f"{self.prefix}.encoder.layers.{stage}.downsample.{part}.{leaf}"]
        return [f"{self.prefix}.{_HUGGING_FACE[module]}.{leaf}"]

    def _block_names(self, module: str, leaf: str) -> list[str]:
        if self.prefix == "swin":
            if module == "attn.qkv":
                return [f"attention.{letter}_proj.{leaf}" for letter in "qkv"]
            if leaf == "table":
                return ["attention.relative_position_bias.relative_position_bias_table"]
            return [f"{_HUGGING_FACE_BLOCK[module]}.{leaf}"]
        if leaf in ("q_bias", "v_bias"):
            return [f"attention.self.{'query' if leaf == 'q_bias' else 'value'}.bias"]
        if module == "attn.qkv":
            return [f"attention.self.{part}.{leaf}" for part in ("query", "key", "value")]
        if leaf == "logit_scale":
            return ["attention.self.logit_scale"]
        return [f"{_HUGGING_FACE_V2_BLOCK[module]}.{leaf}"]


_HUGGING_FACE = {"patch_embed": "embeddings.patch_embeddings.projection", "patch_norm": "embeddings.norm", "norm": "layernorm"}
_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_HUGGING_FACE_BLOCK = {**_NORMS, "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_HUGGING_FACE_V2_BLOCK = {
    **_NORMS,
    "attn.proj": "attention.output.dense",
    "attn.position_bias.fc1": "attention.self.continuous_position_bias_mlp.0",
    "attn.position_bias.fc2": "attention.self.continuous_position_bias_mlp.2",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
