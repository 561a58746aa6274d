"""Starts a model of 250 MB at ZeRO-3 and prints how much memory that took at its peak; run by test_materialise.py."""

import ctypes
import json
from pathlib import Path

import torch

from tests.engine.tiny import TinyObjective, tiny_engine
from vitscale.engine.deepspeed_config import EngineConfig, deepspeed_config
from vitscale.engine.materialise import materialise
from vitscale.engine.processes import init_process_group, shutdown
from vitscale.nn.init import set_init, zeros

WIDTH, DEPTH = 512, 60
M_MMAP_THRESHOLD = -3  # malloc.h


def main() -> None:
    torch.set_num_threads(1)
    # With a fixed threshold glibc gives back at once what is freed; by itself it keeps freed parameters, at times half a model of them.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536) == 1
    init_process_group("cpu")
    tiny_engine(stage=3).close()  # what DeepSpeed loads at first use is not the model's
    before_bytes = _peak_bytes()
    objective = _large_objective()
    model_bytes = 4 * sum(parameter.numel() for parameter in objective.parameters())
    config = EngineConfig(zero_stage=3, precision="fp32", device="cpu", micro_batch=1)
    ds_config = deepspeed_config(config, num_parameters=model_bytes // 4)
    materialise(objective, zero_stage=3, dtype=torch.float32, device=torch.device("cpu"), config=ds_config)
    materialised_bytes = _peak_bytes()
    del objective
    engine = tiny_engine(stage=3, objective=_large_objective())
    started_bytes = _peak_bytes()
    engine.close()
    shutdown()
    grown = {"materialised": materialised_bytes - before_bytes, "started": started_bytes - before_bytes}
    print(json.dumps({"model": model_bytes} | grown))


def _large_objective() -> TinyObjective:
    with torch.device("meta"):
        objective = TinyObjective(WIDTH, DEPTH)
    for parameter in objective.parameters():
        set_init(parameter, zeros())  # drawing normals for all of it would only take time
    return objective


def _peak_bytes() -> int:
    # Not getrusage: its maximum begins with the memory of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
