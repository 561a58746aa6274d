"""What an adaptive model spends on each image of a held-out data set, and on which of them it spends more."""

# B batch, K classes, L blocks, S samples

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vitscale.data.dataset import Dataset
from vitscale.data.types import Batch
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import Ranks
from vitscale.evals.classification import ClassificationConfig, ClassificationEval
from vitscale.models import ModelConfig, ViTConfig
from vitscale.objectives.base import Spending

_PERCENTS = (10, 50, 90)


class SpendingConfig(ClassificationConfig):
    """FLOPs of the forward pass per image on a held-out packed data set, of a model with `halting`."""

    kind: Literal["spending"] = "spending"  # type: ignore[assignment]

    def form_problems(self, model: ModelConfig) -> Iterator[str]:
        """FLOPs are known by the tokens of the smallest patches."""
        if self.patch_size is not None:
            yield f"patch_size: {self.patch_size}, but what is spent is counted at the smallest of model.flexible_patches; leave it out"
        else:
            yield from super().form_problems(model)


class SpendingEval(ClassificationEval):
    """One such evaluation, ready to run as often as wanted."""

    method = "spend"

    def __init__(
        self, config: ClassificationConfig, *, dataset: Dataset, model: ModelConfig, ranks: Ranks, pin_memory: bool = False
    ) -> None:
        super().__init__(config, dataset=dataset, model=model, ranks=ranks, pin_memory=pin_memory)
        assert isinstance(model, ViTConfig), "validation asks for a model that halts"
        shape = replace(model.shape, patch_dropout=0.0)  # which is for training only
        self._flops_LN = torch.tensor(shape.flops_by_tokens())
        # What does not depend on the image: embedding and pooling.
        self._other_flops = shape.forward_flops - int(self._flops_LN[:, -1].sum())

    def run(self, predict: Callable[[Batch], Spending]) -> dict[str, float]:  # type: ignore[override]
        """GFLOPs of the backbone's forward pass per image. All ranks must call this.

        `gflops`: the mean; `gflops_p10` to `_p90`: percentiles; `gflops_most`: what an image takes of which no token halts;
        `gflops_surest` and `_unsurest`: means over the quarters of the images with the highest and lowest probability of
        the predicted class; `gflops_right` and `_wrong`: over the images with a right and a wrong prediction, where there are any;
        `blocks_per_token`; `top1`. Each image's FLOPs are those of its own tokens, whatever else is in its batch.
        """
        samples = torch.tensor([row for rows in gather_json(self._rows(predict)) for row in rows], dtype=torch.float64)
        assert len(samples) == self.dataset.num_samples, f"counted {len(samples)} of {self.dataset.num_samples} samples"
        return self._figures(*samples.unbind(dim=1))

    def _rows(self, predict: Callable[[Batch], Spending]) -> list[list[float]]:
        """FLOPs, tokens over all blocks, probability and whether it is right, of this rank's samples."""
        rows: list[list[float]] = []
        for batch, (logits_BK, tokens_BL) in self.results(predict):
            label_B = batch["label"].to(logits_BK.device)
            probability_B, guess_B = logits_BK.softmax(dim=1).max(dim=1)
            flops_B = self._flops_LN.gather(1, tokens_BL.T.cpu()).sum(dim=0) + self._other_flops
            columns = (flops_B, tokens_BL.sum(dim=1), probability_B, guess_B == label_B)
            found_B4 = torch.stack([column_B.cpu().double() for column_B in columns], dim=1)
            rows += found_B4[label_B.cpu() >= 0].tolist()  # the others fill up the last batch
        return rows

    def _figures(self, flops_S: Tensor, tokens_S: Tensor, probability_S: Tensor, is_right_S: Tensor) -> dict[str, float]:
        gflops_S = flops_S / 1e9
        surest_first = probability_S.argsort(descending=True, stable=True)
        quarter = max(1, len(gflops_S) // 4)
        figures = {
            "gflops": gflops_S.mean(),
            **{f"gflops_p{percent}": gflops_S.quantile(percent / 100) for percent in _PERCENTS},
            "gflops_most": (self._flops_LN[:, -1].sum() + self._other_flops) / 1e9,
            "gflops_surest": gflops_S[surest_first[:quarter]].mean(),
            "gflops_unsurest": gflops_S[surest_first[-quarter:]].mean(),
            "blocks_per_token": tokens_S.mean() / (self._flops_LN.shape[1] - 1),
            "top1": is_right_S.mean(),
        }
        for name, chosen_S in (("right", is_right_S > 0), ("wrong", is_right_S == 0)):
            if chosen_S.any():
                figures[f"gflops_{name}"] = gflops_S[chosen_S].mean()
        return {name: float(value) for name, value in figures.items()} | {"num_samples": float(len(gflops_S))}
