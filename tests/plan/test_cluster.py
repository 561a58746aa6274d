"""What this machine offers."""

import pytest
import torch

from vitscale.config import ConfigError
from vitscale.plan.cluster import detect_cluster, host_memory_bytes


def test_cpu_memory_is_shared_among_local_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (detect_cluster(device="cpu", world_size=n) for n in (1, 2))
    assert one.memory_bytes == host_memory_bytes() > 2**30
    assert two.memory_bytes == one.memory_bytes // 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert detect_cluster(device="cpu", world_size=64).memory_bytes == two.memory_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert detect_cluster(device="auto", world_size=1).device == "cpu"
    with pytest.raises(ConfigError, match=r"parallel\.device: cuda"):
        detect_cluster(device="cuda", world_size=1)
