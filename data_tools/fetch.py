"""Obtains Fashion-MNIST: from Debian's package, from its authors, or, where neither is in reach, a small sample kept here.

Whatever the origin, files are accepted by the sha256 of what they hold: Debian compresses them anew, so the gzip files themselves differ.
"""

import errno
import gzip
import hashlib
import http.client
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vitscale.config import DataError

from .staging import staged_folder

Extent = Literal["full", "sample"]
"""All 60,000 + 10,000 images, or the 800 + 200 that come with this package."""

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
UPSTREAM = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
SAMPLE_FOLDER = Path(__file__).parent / "sample"

Digests = Mapping[str, str]
"""sha256 of the content, decompressed, by the name of the gzip file."""

FULL_DIGESTS: Digests = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SAMPLE_DIGESTS: Digests = {
    "train-images-idx3-ubyte.gz": "028fe5199a551cfefb03adb0c90e23711cb64f36c42552a19361b6da46993fd3",
    "train-labels-idx1-ubyte.gz": "eb4214c489056667c2ba417567865e89dbd080646c3e6a71027e71423577604f",
    "t10k-images-idx3-ubyte.gz": "c5778dde4e96eeb34657888930a98f527ac6b0cb35e9e969ba53f01dfce868bd",
    "t10k-labels-idx1-ubyte.gz": "3bf96d4b7566f51d8726eb6088e70eb796c98349a6135181dddfcc5bc590cf72",
}


class UnavailableError(Exception):
    """One source cannot give the data, for the reason in the message; the next one is tried."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place the data may come from: `obtain(folder)` puts the four files into an empty folder or raises
    `UnavailableError`; `digests` says what they must hold."""

    label: str
    extent: Extent
    digests: Digests
    obtain: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Where the four gzip files lie and how much of the data set they are."""

    folder: Path
    extent: Extent


def standard_sources() -> tuple[Source, ...]:
    """The places to try, best first."""
    full = partial(Source, extent="full", digests=FULL_DIGESTS)
    return (
        full(label=f"the folder {DEBIAN_FOLDER}", obtain=partial(copy_files, origin=DEBIAN_FOLDER, names=tuple(FULL_DIGESTS))),
        full(label=f"Debian's package {DEBIAN_PACKAGE} (31 MB, unpacked without installing it)", obtain=unpack_debian_package),
        full(label=f"{UPSTREAM} (31 MB)", obtain=partial(download_files, base_url=UPSTREAM, names=tuple(FULL_DIGESTS))),
        Source(
            label="the sample that comes with vitscale",
            extent="sample",
            digests=SAMPLE_DIGESTS,
            obtain=partial(copy_files, origin=SAMPLE_FOLDER, names=tuple(SAMPLE_DIGESTS)),
        ),
    )


def fetch_fashion_mnist(folder: Path, *, sources: Sequence[Source] | None = None, report: Callable[[str], None] = print) -> Fetched:
    """Make `folder` hold the four gzip files of Fashion-MNIST, complete or not at all, and say where they came from.

    A folder that already holds them is left as it is. Raises `DataError` when the folder holds something else or cannot be
    written, or when no source has the data.
    """
    sources = standard_sources() if sources is None else sources
    if folder.exists():
        return _accept_existing(folder, sources=sources, report=report)
    for source in sources:
        report(f"Fashion-MNIST: trying {source.label}")
        try:
            _obtain(source, folder=folder)
        except UnavailableError as reason:
            report(f"  not there: {reason}")
            continue
        report(_summary(folder, extent=source.extent))
        return Fetched(folder=folder, extent=source.extent)
    raise DataError(f"{folder}: no source has Fashion-MNIST; the lines above say why. Put its four .idx?-ubyte.gz files there by hand.")


def copy_files(folder: Path, *, origin: Path, names: Sequence[str]) -> None:
    """Copy the named files out of a local folder."""
    for name in names:
        try:
            shutil.copyfile(origin / name, folder / name)
        except OSError as error:
            _refuse_full_disk(error)
            raise UnavailableError(f"{origin / name}: {error.strerror}") from None


def unpack_debian_package(folder: Path) -> None:
    """Download Debian's package with apt-get and unpack it; needs no root and installs nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _run("apt-get", "download", DEBIAN_PACKAGE, folder=Path(scratch))
        archives = sorted(Path(scratch).glob("*.deb"))
        if not archives:
            raise UnavailableError(f"apt-get download left no package {DEBIAN_PACKAGE}")
        _run("dpkg", "-x", archives[-1].name, "unpacked", folder=Path(scratch))
        unpacked = Path(scratch, "unpacked", DEBIAN_FOLDER.relative_to("/"))
        copy_files(folder, origin=unpacked, names=tuple(FULL_DIGESTS))


def download_files(folder: Path, *, base_url: str, names: Sequence[str], timeout_seconds: float = 20) -> None:
    """Download the named files from below one address."""
    for name in names:
        url = f"{base_url}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_seconds) as response, (folder / name).open("wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, http.client.HTTPException) as error:
            _refuse_full_disk(error)
            raise UnavailableError(f"{url}: {getattr(error, 'reason', error)}") from None


def _accept_existing(folder: Path, *, sources: Sequence[Source], report: Callable[[str], None]) -> Fetched:
    for source in sources:
        if _wrong_file(folder, digests=source.digests) is None:
            report(_summary(folder, extent=source.extent))
            return Fetched(folder=folder, extent=source.extent)
    raise DataError(f"{folder}: exists but does not hold the four files of Fashion-MNIST. Delete it or name another folder.")


def _obtain(source: Source, *, folder: Path) -> None:
    with staged_folder(folder) as staged:
        source.obtain(staged)
        wrong = _wrong_file(staged, digests=source.digests)
        if wrong is not None:
            raise UnavailableError(f"{wrong} does not hold what it should (its sha256 differs)")


def _refuse_full_disk(error: Exception) -> None:
    """The next source would not fit either, but for the small sample, which nobody has asked for."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error


def _wrong_file(folder: Path, *, digests: Digests) -> str | None:
    """The first file that is missing or does not hold what it should."""
    return next((name for name, digest in digests.items() if _content_digest(folder / name) != digest), None)


def _content_digest(path: Path) -> str | None:
    """sha256 of the decompressed content; None for a file that is missing or no gzip."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return None


def _run(*command: str, folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise UnavailableError(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took more than 300 seconds") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise UnavailableError(f"{' '.join(command)}: {lines[-1] if lines else f'exit status {error.returncode}'}") from None


def _summary(folder: Path, *, extent: Extent) -> str:
    if extent == "full":
        return f"Fashion-MNIST: all 60,000 training and 10,000 test images are in {folder}"
    return (
        f"Fashion-MNIST: ONLY A SAMPLE of 800 training and 200 test images is in {folder}: expect a far lower accuracy than with"
        " all of it. To try again for all of it, delete that folder and what was packed from it."
    )
