"""The source `fashion-mnist`: the four IDX files of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) with the names of its classes."""

from pathlib import Path

from ..split import Split
from .idx import IdxFormat, open_idx_format

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

_FASHION_MNIST = IdxFormat(
    kind="fashion-mnist",
    image_shape=(28, 28),
    classes=CLASSES,
    remedy="Fetch the files again: `vitscale-data fetch FOLDER`.",
    nothing_found=(
        "holds no Fashion-MNIST (train-images-idx3-ubyte.gz and the like). "
        "Give the folder with the four files, or get them with `vitscale-data fetch FOLDER`."
    ),
)


def open_fashion_mnist(folder: Path) -> list[Split]:
    """The splits whose files lie in `folder`. Raises `DataError` when there is none or a file is damaged."""
    return open_idx_format(folder, idx_format=_FASHION_MNIST)
