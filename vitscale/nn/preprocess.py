"""Normalisation of uint8 images on the device that trains on them."""

# B batch, C channels, H height, W width

from collections.abc import Sequence

import torch
from torch import Tensor

_UINT8_MAX = 255.0


class Normaliser:
    """`(image / 255 - mean) / std` per channel; mean and standard deviation in units where white is 1.

    The constants are copied to a device once, so a step waits for nothing. No module: nothing of it is part of the state.
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, image_BCHW: Tensor, *, dtype: torch.dtype) -> Tensor:
        """uint8 (B, C, H, W) to `dtype` on the same device; the arithmetic is fp32."""
        mean_C11, std_C11 = self._constants_on(image_BCHW.device)
        return image_BCHW.to(torch.float32).sub_(mean_C11).div_(std_C11).to(dtype)

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            # Not an inference tensor even when evaluation comes first: training would refuse it later.
            with torch.inference_mode(False):
                pair = (torch.tensor([self.mean, self.std], dtype=torch.float32, device="cpu") * _UINT8_MAX).to(device)
            self._constants[device] = (pair[0].view(-1, 1, 1), pair[1].view(-1, 1, 1))
        return self._constants[device]
