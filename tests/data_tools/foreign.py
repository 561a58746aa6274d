"""Small WebDataset tars as other programs write them."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.data_tools.images import image_bytes

Samples = Mapping[str, Mapping[str, bytes]]


def photo_samples(count: int, *, start: int = 0) -> dict[str, dict[str, bytes]]:
    """JPEGs with a label, a caption and long names with spaces, which need GNU or pax headers."""
    return {
        f"folder of photos/{'n' * 90} {number:06d}": {
            "jpg": image_bytes(number),
            "cls": str(number % 5).encode(),
            "txt": f"photo {number}".encode(),
        }
        for number in range(start, start + count)
    }


def write_tar(path: Path, samples: Samples, *, dialect: int = tarfile.PAX_FORMAT) -> None:
    """Write the members of one sample after the other with Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=dialect) as archive:
        for key, members in samples.items():
            for extension, payload in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
