"""A transformer of a few thousand parameters with its batches, small enough to try every engine setting on."""

# B batch, N tokens, D width

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.data.types import Batch
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.nn.init import initial_value, normal, set_init, zeros
from vitscale.objectives.base import Objective, StepOutput

WIDTH, TOKENS, CLASSES = 12, 5, 3
GLOBAL_BATCH = 8


class Block(nn.Module):
    """Attention without heads and a gelu layer: matrix products, a softmax and element-wise work."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # No bias: the keys' has no gradient but rounding, of which Adam makes whole steps.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.fc = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BND, k_BND, v_BND = self.qkv(self.norm(x_BND)).chunk(3, dim=-1)
        x_BND = x_BND + F.scaled_dot_product_attention(q_BND[:, None], k_BND[:, None], v_BND[:, None])[:, 0]
        return x_BND + F.gelu(self.fc(x_BND))


class Backbone(nn.Module):
    """Position embedding and blocks, run through `block_runner` as the real backbones do."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, TOKENS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.block_runner: Callable[[int, nn.Module, Tensor], Tensor] = lambda _index, block, x_BND: block(x_BND)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.pos_embed
        for index, block in enumerate(self.blocks):
            x_BND = self.block_runner(index, block, x_BND)
        return x_BND


class TinyObjective(Objective):
    """Classifies random tokens."""

    batch_keys = frozenset({"tokens", "label"})

    def __init__(self, width: int = WIDTH, depth: int = 2) -> None:
        super().__init__()
        self.backbone = Backbone(width, depth)
        self.head = nn.Linear(width, CLASSES)
        self.scale = nn.Parameter(torch.empty(1, CLASSES))  # the objective's own: ZeRO-3 must gather it for `predict` as well
        self.steps_seen: list[int] = []
        for name, parameter in self.named_parameters():
            set_init(parameter, zeros() if name.endswith("bias") else normal(0.3))

    def forward(self, batch: Batch, step: int) -> StepOutput:  # noqa: ARG002  (the objective's contract)
        scores = self.predict(batch)
        loss = F.cross_entropy(scores.float(), batch["label"])
        return StepOutput(loss=loss, metrics={"top1": (scores.argmax(-1) == batch["label"]).float().mean()})

    def predict(self, batch: Batch) -> Tensor:
        x_BND = batch["tokens"].to(self.backbone.pos_embed.dtype)
        scores: Tensor = self.head(self.backbone(x_BND).mean(dim=1)) * (1.0 + self.scale)
        return scores

    def after_step(self, step: int) -> None:
        self.steps_seen.append(step)


def meta_objective(width: int = WIDTH, depth: int = 2) -> TinyObjective:
    """The objective as the run builds it: on the meta device."""
    with torch.device("meta"):
        return TinyObjective(width, depth)


def initial(seed: int) -> Callable[[str, nn.Parameter, tuple[int, ...]], Tensor]:
    """Initial values of a seed, as the run hands them to the engine."""
    return lambda name, parameter, shape: initial_value(parameter, name=name, shape=shape, seed=seed)


def tiny_engine(
    *, seed: int = 0, stage: int = 1, precision: str = "fp32", objective: TinyObjective | None = None, **settings: object
) -> Engine:
    """An engine around the tiny objective; `settings` are fields of `EngineConfig`."""
    values = {"micro_batch": GLOBAL_BATCH, "weight_decay": 0.1, "device": "cpu"} | settings
    config = EngineConfig(zero_stage=stage, precision=precision, **values)  # type: ignore[arg-type]
    return build_engine(objective or meta_objective(), config=config, seed=seed, initial=initial(seed))


def batch(step: int, *, rows: slice = slice(None), width: int = WIDTH) -> Batch:
    """Rows of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randn(GLOBAL_BATCH, TOKENS, width, generator=generator)
    label = torch.randint(0, CLASSES, (GLOBAL_BATCH,), generator=generator)
    return {"tokens": tokens[rows], "label": label[rows]}


def micro_batches(step: int, *, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> list[Batch]:
    """This rank's part of the global batch of a step, cut into micro-batches."""
    rows = GLOBAL_BATCH // world_size
    size = rows // accumulation
    starts = range(rank * rows, (rank + 1) * rows, size)
    return [batch(step, rows=slice(start, start + size)) for start in starts]
