"""Recognising the checkpoints of other programs, none of which are read: their files are pickles."""

from collections.abc import Iterator
from pathlib import Path

_PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_DEEPSPEED_PREFIXES = ("mp_rank_", "zero_pp_rank_", "bf16_zero_pp_rank_", "layer_")
_REMEDY = (
    "vitscale reads its own checkpoints only: files of this kind hold pickles, which run their author's code when they are loaded."
    " Give a run directory or checkpoint of vitscale, or make one of a plain ViT's weights with `vitscale import`; to train here from the"
    " start, move the other program's files away"
)


def explain_foreign(path: Path) -> str | None:
    """What another program's checkpoint at `path` (a file or a folder) is and what to do with it; None where it is none."""
    kind = _kind(path)
    return None if kind is None else f"{kind}; {_REMEDY}"


def find_foreign(folder: Path) -> Iterator[Path]:
    """The folder itself or those in it that another program left there. Looks one level deep."""
    if _kind(folder) is not None:
        yield folder
        return
    yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and _kind(path) is not None)


def _kind(path: Path) -> str | None:
    if not path.is_dir():
        return f"{path.name} is a pickled file of torch" if path.suffix in _PICKLED and path.is_file() else None
    names = sorted(entry.name for entry in path.iterdir())
    deepspeed = [name for name in names if name.endswith(".pt") and name.startswith(_DEEPSPEED_PREFIXES)]
    if deepspeed or "zero_to_fp32.py" in names or (path / "latest").is_file():
        return f"{path.name} is a DeepSpeed checkpoint (it holds {(deepspeed or ['latest'])[0]})"
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return f"{path.name} is a checkpoint of torch.distributed.checkpoint"
    pickled = [name for name in names if Path(name).suffix in _PICKLED]
    return f"{path.name} holds pickled files of torch ({pickled[0]})" if pickled else None
