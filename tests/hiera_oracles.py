"""Independent implementations of Hiera with our weights copied in: timm and Hugging Face."""

from abc import ABC, abstractmethod
from functools import partial

import torch
from timm.models.hiera import Hiera as TimmHiera
from torch import Tensor, nn
from transformers import HieraConfig as HuggingFaceHieraConfig
from transformers import HieraForImageClassification

from vitscale.models import HieraConfig
from vitscale.objectives import Supervised


class HieraOracle(ABC):
    """A model of another library, and where each of our parameters' gradient is found in it."""

    def __init__(self, model: nn.Module, ours: Supervised) -> None:
        self.model = model
        with torch.no_grad():
            for name, value in ours.named_parameters():
                model.get_parameter(self.name(name)).copy_(self.theirs(name, value))
        names = {self.name(name) for name, _ in ours.named_parameters()}
        assert names == {name for name, _ in model.named_parameters()}, "a parameter was left as it was drawn"

    @abstractmethod
    def name(self, name: str) -> str:
        """What our parameter is called in the other library."""

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(image_BCHW)

    def gradient(self, name: str, like: Tensor) -> Tensor:
        gradient = self.model.get_parameter(self.name(name)).grad
        return gradient.flatten(2).transpose(1, 2) if gradient.shape != like.shape else gradient

    def theirs(self, name: str, value: Tensor) -> Tensor:
        """Our value in their shape: timm has two tables as maps."""
        expected = self.model.get_parameter(self.name(name)).shape
        return value if value.shape == expected else value.transpose(1, 2).reshape(expected)


class TimmHieraOracle(HieraOracle):
    """timm's Hiera, for images of one size, which may be a rectangle."""

    def __init__(self, config: HieraConfig, ours: Supervised, *, size: tuple[int, int] | None = None) -> None:
        shape = config.shape
        depths = config.depths
        model = TimmHiera(
            img_size=size or (shape.image_size, shape.image_size),
            in_chans=shape.num_channels,
            num_classes=ours.num_classes,
            embed_dim=config.width,
            num_heads=config.num_heads,
            stages=depths,
            q_pool=shape.num_poolings,
            mask_unit_size=(shape.unit_side, shape.unit_side),
            mask_unit_attn=tuple(stage < config.window_stages for stage in range(len(depths))),
            use_expand_proj=config.shortcut == "project",
            patch_kernel=(shape.kernel_side, shape.kernel_side),
            patch_stride=(shape.patch_stride, shape.patch_stride),
            patch_padding=(shape.kernel_side // 2, shape.kernel_side // 2),
            mlp_ratio=config.mlp_ratio,
            init_values=config.layer_scale,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            abs_win_pos_embed=config.window_positions,
            global_pos_size=(config.position_grid or shape.grid,) * 2,
        )
        super().__init__(model, ours)

    def name(self, name: str) -> str:
        name = name.removeprefix("backbone.").replace("window_pos_embed", "pos_embed_win")
        return f"head.{name}" if name.startswith("norm.") else name


class HuggingFaceHieraOracle(HieraOracle):
    """transformers' HieraForImageClassification, which resamples positions where it is told to."""

    def __init__(self, config: HieraConfig, ours: Supervised) -> None:
        shape, depths = config.shape, config.depths
        self.stages = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
        self.numbers = [number for depth in depths for number in range(depth)]
        model = HieraForImageClassification(
            HuggingFaceHieraConfig(
                embed_dim=config.width,
                image_size=(shape.image_size, shape.image_size),
                patch_size=(shape.kernel_side, shape.kernel_side),
                patch_stride=(shape.patch_stride, shape.patch_stride),
                patch_padding=(shape.kernel_side // 2, shape.kernel_side // 2),
                mlp_ratio=config.mlp_ratio,
                depths=list(depths),
                num_heads=[config.num_heads * 2**stage for stage in range(len(depths))],
                num_query_pool=shape.num_poolings,
                masked_unit_size=(shape.unit_side, shape.unit_side),
                masked_unit_attention=[stage < config.window_stages for stage in range(len(depths))],
                num_channels=shape.num_channels,
                num_labels=ours.num_classes,
                hidden_act="gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
                layer_norm_eps=config.layer_norm_eps,
            )
        )
        super().__init__(model, ours)

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(pixel_values=image_BCHW, interpolate_pos_encoding=True).logits

    def name(self, name: str) -> str:
        name = name.removeprefix("backbone.")
        if not name.startswith("blocks."):
            outside, _, leaf = name.rpartition(".")
            return f"{_HUGGING_FACE[outside]}.{leaf}" if outside else "hiera.embeddings.position_embeddings"
        _, index, rest = name.split(".", maxsplit=2)
        rest = rest.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        return f"hiera.encoder.stages.{self.stages[int(index)]}.layers.{self.numbers[int(index)]}.{rest}"


_HUGGING_FACE = {
    "patch_embed.proj": "hiera.embeddings.patch_embeddings.projection",
    "norm": "hiera.pooler.layernorm",
    "head.fc": "classifier",
}
