"""Script for `run_ranks`: trains at ZeRO stage 2 with an evaluation, of which rank 1 cannot read the second batch.

Arguments: root folder, the override that configures the evaluation. Prints the error that this rank ends with.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.collector import skip_imports
from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.config import DataError, UserError
from vitscale.data.loader import EvalLoader
from vitscale.data.types import Batch


def main() -> None:
    """Train."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    skip_imports()
    read, batches = EvalLoader.__next__, []

    def fails(loader: EvalLoader) -> Batch:
        batches.append(1)
        if len(batches) == 2:
            raise DataError("rank 1 cannot read it")
        return read(loader)

    if dist.get_rank() == 1:
        EvalLoader.__next__ = fails  # type: ignore[method-assign]
    try:
        api.train(tiny_config(Path(sys.argv[1]), "parallel.zero_stage=2", sys.argv[2]))
    except UserError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
