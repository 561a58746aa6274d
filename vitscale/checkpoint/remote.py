"""Copies of a run's checkpoints in an object store: sent after a local commit, verified by sha256 when they come back.

A copy has the names of the local one below `ADDRESS/step-N/`. Its manifest is written last and deleted first, so that a copy
with a manifest has all its files: what an upload that died left behind is never taken for a checkpoint.
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.commit import put_in_place
from vitscale.checkpoint.discover import Found, find_newest, hash_file, nothing
from vitscale.checkpoint.durable import create_folder, disk_errors, sync_folder, write_durably
from vitscale.checkpoint.layout import CONFIG, MANIFEST, list_step_folders, parse_step_folder, step_folder
from vitscale.checkpoint.manifest import FileEntry, Manifest, NewerVersionError, parse_manifest
from vitscale.checkpoint.retention import RetentionPolicy, format_bytes, free_bytes
from vitscale.config import CheckpointError, ConfigError, DataError
from vitscale.data.storage.object_writer import ObjectWriter
from vitscale.data.storage.store_address import is_address

_SCHEMES = ("s3", "gs", "az")
_READ_BYTES = 1 << 20
_RANGE_BYTES = 8 << 20
_RANGES_AT_ONCE = 4


class UploadCancelledError(Exception):
    """An upload was told to stop; what it had sent stays and is not sent again."""


class DamagedCopyError(CheckpointError):
    """A remote checkpoint came back with other bytes than were sent."""


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What an upload came to: bytes of the checkpoint, and those of them that were not there already."""

    num_bytes: int
    sent_bytes: int


@dataclass(frozen=True, kw_only=True)
class RemoteFound:
    """The steps of the whole remote checkpoints, newest first, and why others are not whole."""

    steps: tuple[int, ...]
    passed_over: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sought:
    """Where to go on from, after the store was asked, and what the user should know of that."""

    found: Found
    messages: tuple[str, ...]


class RemoteCheckpoints:
    """The checkpoints below `address` (`s3://bucket/prefix`, `gs://`, `az://`), which belong to one run.

    Credentials come from the environment and appear nowhere. `check_owner` raises when another process has taken over the
    run; it is called before anything becomes visible or is deleted. For one thread at a time.
    """

    def __init__(self, address: str, *, check_owner: Callable[[], None] = lambda: None, writer: ObjectWriter | None = None) -> None:
        """Raises `ConfigError` for an address that checkpoints cannot be sent to. The store is not asked yet."""
        if not is_address(address) or address.partition(":")[0].lower() not in _SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise ConfigError(f"checkpoint.upload_to: checkpoints are copied to object stores; give an address that starts with {schemes}")
        try:
            self._writer = writer or ObjectWriter(address)
        except DataError as error:
            raise ConfigError(f"checkpoint.upload_to: {error}") from None
        self._check_owner = check_owner
        self._manifests: dict[int, Manifest] = {}

    @property
    def root(self) -> str:
        """The address."""
        return self._writer.root

    def upload(self, path: Path, *, is_cancelled: Callable[[], bool] = lambda: False) -> Uploaded:
        """Copy the committed checkpoint at `path`. Files that are there already with equal size and sha256 are not sent again.

        Every byte is hashed on its way, so that what changed on the local disk since the save is not sent. Raises
        `CheckpointError`, or `UploadCancelledError` once `is_cancelled` says so.
        """
        with disk_errors():
            data = (path / MANIFEST).read_bytes()
        manifest = parse_manifest(data, where=str(path / MANIFEST))
        name = f"{path.name}/{MANIFEST}"
        num_bytes = sum(entry.bytes for entry in manifest.files) + len(data)
        with self._explained(f"{path.name} could not be copied to {self.root}"):
            sizes = self._writer.list_sizes(path.name)
            if name in sizes and self._writer.read_file(name) == data and _problem(manifest, sizes=sizes, folder=path.name) is None:
                return Uploaded(num_bytes=num_bytes, sent_bytes=0)
            if name in sizes:  # of another save of this step: from here on its files change
                self._check_owner()
                self._writer.delete([name])
            self._manifests.pop(manifest.step, None)
            sent = sum(self._send(path, entry, sizes=sizes, is_cancelled=is_cancelled) for entry in manifest.files)
            self._check_owner()
            self._writer.put(name, lambda: [data], num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            listed = {f"{path.name}/{entry.name}" for entry in manifest.files} | {name}
            self._writer.delete(sorted(set(sizes) - listed))
        return Uploaded(num_bytes=num_bytes, sent_bytes=sent + len(data))

    def find(self) -> RemoteFound:
        """Look through the store. Sizes are compared with each manifest; hashes are when a checkpoint is downloaded.

        Raises `CheckpointError` when the store does not answer, and `NewerVersionError` where one of them is for a newer vitscale.
        """
        with self._explained(f"the checkpoints in {self.root} could not be listed"):
            folders = self._folders()
            reasons = {step: self._why_unusable(step, sizes=folders[step]) for step in sorted(folders, reverse=True)}
        return RemoteFound(
            steps=tuple(step for step, reason in reasons.items() if reason is None),
            passed_over=tuple(f"{self.root}/{_folder_name(step)}: {reason}" for step, reason in reasons.items() if reason is not None),
        )

    def config_text(self, step: int) -> str | None:
        """The configuration of the run that saved the checkpoint of `step`; None where it is not what was sent, as the download will
        find too. Raises `CheckpointError` when the store does not answer."""
        name = _folder_name(step)
        with self._explained(f"the configuration of step {step} could not be read from {self.root}"):
            manifest = parse_manifest(self._writer.read_file(f"{name}/{MANIFEST}"), where=f"{self.root}/{name}/{MANIFEST}")
            data = self._writer.read_file(f"{name}/{CONFIG}")
        known = {entry.name: entry.sha256 for entry in manifest.files}
        return data.decode() if hashlib.sha256(data).hexdigest() == known.get(CONFIG) else None

    def download(self, step: int, *, folder: Path, show_life: Callable[[], None] = nothing) -> Path:
        """Bring the checkpoint of `step` into the checkpoints directory `folder` and return its path. `show_life` is called
        meanwhile.

        As a save does, it writes into `step-N.tmp` and commits by renaming; a local checkpoint of the step is replaced. Files
        that an earlier try left are kept where their sha256 is right. Raises `DamagedCopyError` when the store gives other
        bytes than were sent, else `CheckpointError`; nothing is committed then.
        """
        with self._explained(f"the checkpoint of step {step} could not be downloaded from {self.root}"):
            data = self._writer.read_file(f"{_folder_name(step)}/{MANIFEST}")
            manifest = parse_manifest(data, where=f"{self.root}/{_folder_name(step)}/{MANIFEST}")
            partial = step_folder(folder, step=step, role="partial")
            with disk_errors():
                create_folder(partial)
                missing = _keep_whole(partial, manifest=manifest, show_life=show_life)
                _check_space(partial, needed_bytes=sum(entry.bytes for entry in missing))
                for entry in missing:
                    self._receive(entry, step=step, partial=partial, show_life=show_life)
                write_durably(partial / MANIFEST, data)
                sync_folder(partial)
                return put_in_place(partial, step=step)

    def prune(self, policy: RetentionPolicy, *, saved: int, pending: Collection[int] = ()) -> list[str]:
        """Delete what `policy` does not keep, now that `saved` is there, and what uploads that died left; return the names.

        Nothing newer than `saved`, nor any of `pending`, is touched. Raises `CheckpointError`.
        """
        with self._explained(f"old checkpoints in {self.root} could not be deleted"):
            folders = {step: sizes for step, sizes in self._folders().items() if step <= saved}
            whole = [step for step, sizes in folders.items() if self._why_unusable(step, sizes=sizes) is None]
            doomed = [*policy.outdated(whole), *(step for step in folders if step not in whole and step < saved)] if saved in whole else []
            doomed = sorted(step for step in doomed if step not in pending)
            for step in doomed:
                self._check_owner()
                self._manifests.pop(step, None)
                manifest = f"{_folder_name(step)}/{MANIFEST}"
                self._writer.delete([name for name in folders[step] if name == manifest])
                self._writer.delete([name for name in folders[step] if name != manifest])
        return [_folder_name(step) for step in doomed]

    def _send(self, path: Path, entry: FileEntry, *, sizes: dict[str, int], is_cancelled: Callable[[], bool]) -> int:
        """Send a file unless it is there, and return the bytes sent."""
        name = f"{path.name}/{entry.name}"
        if sizes.get(name) == entry.bytes:
            stored = self._writer.stored(name)
            if stored is not None and stored.sha256 == entry.sha256:
                return 0
        self._writer.put(
            name, lambda: _checked_content(path / entry.name, entry, is_cancelled=is_cancelled), num_bytes=entry.bytes, sha256=entry.sha256
        )
        return entry.bytes

    def _receive(self, entry: FileEntry, *, step: int, partial: Path, show_life: Callable[[], None]) -> None:
        name = f"{_folder_name(step)}/{entry.name}"
        digest = hashlib.sha256()
        with (partial / entry.name).open("xb") as file:
            for data in self._ranges(name, num_bytes=entry.bytes):
                digest.update(data)
                file.write(data)
                show_life()
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != entry.sha256:
            raise DamagedCopyError(f"{self.root}/{name}: its content is not what was sent (sha256 differs from the manifest's)")

    def _ranges(self, name: str, *, num_bytes: int) -> Iterator[bytes]:
        """The file's bytes in order, a few ranges on their way at a time."""
        with ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:
            under_way: deque[Future[bytes]] = deque()
            for offset in range(0, num_bytes, _RANGE_BYTES):
                length = min(_RANGE_BYTES, num_bytes - offset)
                under_way.append(pool.submit(self._writer.read_range, name, offset=offset, length=length))
                if len(under_way) == _RANGES_AT_ONCE:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def _folders(self) -> dict[int, dict[str, int]]:
        """Names and sizes of what lies in the folder of each step."""
        folders: dict[int, dict[str, int]] = {}
        for name, size in self._writer.list_sizes().items():
            folder, _, file = name.partition("/")
            entry = parse_step_folder(Path(folder))
            if entry is not None and entry.role == "committed" and file:
                folders.setdefault(entry.step, {})[name] = size
        return folders

    def _why_unusable(self, step: int, *, sizes: dict[str, int]) -> str | None:
        name = f"{_folder_name(step)}/{MANIFEST}"
        if name not in sizes:
            self._manifests.pop(step, None)
            return "its upload did not finish"
        try:
            if step not in self._manifests:
                self._manifests[step] = parse_manifest(self._writer.read_file(name), where=MANIFEST)
        except NewerVersionError as error:
            raise error.retold(f"{self.root}/{_folder_name(step)}/{error}, or move its folder away to go on from an older one") from None
        except CheckpointError as error:
            return str(error)
        return _problem(self._manifests[step], sizes=sizes, folder=_folder_name(step))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise CheckpointError(f"{what}: {error}") from None


def find_newest_or_download(
    folder: Path,
    *,
    remote: RemoteCheckpoints | None,
    check: Callable[[str, str], object] | None = None,
    show_life: Callable[[], None] = nothing,
) -> Sought:
    """The newest whole checkpoint of the checkpoints directory `folder`, downloaded first where the store has a newer one.

    A store that does not answer is passed over where there is a local checkpoint: going on from an older step costs time and
    changes nothing of the result. Without one it raises `CheckpointError`, as a download does that fails for another reason
    than damage, and a checkpoint in a newer version of the format, wherever it lies. Before a download, `check` is given the
    configuration of the run that it is of and where that was read; it raises where the checkpoint would be of no use.
    `show_life` is called while files are hashed or downloaded. Runs on one rank; the answer is for it to share.
    """
    found = find_newest(folder, show_life=show_life)
    if remote is None:
        return Sought(found=found, messages=())
    local = None if found.checkpoint is None else parse_step_folder(found.checkpoint)
    try:
        listed = remote.find()
    except NewerVersionError:
        raise
    except CheckpointError as error:
        if local is None:
            raise error.retold(
                f"{error} There is no local checkpoint either, and starting over might throw work away. Try again when the store"
                " answers, or set checkpoint.upload_to=null to start over"
            ) from None
        return Sought(found=found, messages=(f"going on from the local checkpoint: {error}",))
    messages = [f"passed over {reason}" for reason in listed.passed_over]
    for step in listed.steps:
        if local is not None and step <= local.step:
            break
        config_text = None if check is None else remote.config_text(step)
        if check is not None and config_text is not None:
            check(config_text, f"{remote.root}/{_folder_name(step)}")
        try:
            path = remote.download(step, folder=folder, show_life=show_life)
        except DamagedCopyError as error:
            messages.append(f"passed over {error}")
            continue
        newer = {entry.path for entry in list_step_folders(folder) if entry.step > step}
        passed_over = tuple(entry for entry in found.passed_over if entry.path in newer)
        messages.append(f"downloaded {path.name} from {remote.root}")
        return Sought(found=Found(checkpoint=path, passed_over=passed_over), messages=tuple(messages))
    return Sought(found=found, messages=tuple(messages))


def _folder_name(step: int) -> str:
    return step_folder(Path(), step=step).name


def _problem(manifest: Manifest, *, sizes: dict[str, int], folder: str) -> str | None:
    """Why a remote folder is not the whole checkpoint of its manifest; None if it is, as far as sizes tell."""
    if _folder_name(manifest.step) != folder:
        return f"its manifest is that of step {manifest.step}"
    for entry in manifest.files:
        size = sizes.get(f"{folder}/{entry.name}")
        if size != entry.bytes:
            return f"{entry.name} is missing" if size is None else f"{entry.name} has {size} bytes where the manifest says {entry.bytes}"
    return None


def _checked_content(path: Path, entry: FileEntry, *, is_cancelled: Callable[[], bool]) -> Iterator[bytes]:
    """A file's bytes; raises at their end unless they are those that were saved, which ends the upload."""
    digest = hashlib.sha256()
    with disk_errors(), path.open("rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            if is_cancelled():
                raise UploadCancelledError
            digest.update(data)
            yield data
    if digest.hexdigest() != entry.sha256:
        raise CheckpointError(f"{path}: its content changed since it was saved (sha256 differs from the manifest's); it was not copied")


def _keep_whole(partial: Path, *, manifest: Manifest, show_life: Callable[[], None]) -> list[FileEntry]:
    """Delete what does not belong to the checkpoint from its folder; return what is missing."""
    wanted = {entry.name: entry for entry in manifest.files}
    for path in partial.iterdir():
        entry = wanted.get(path.name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif entry is not None and path.stat().st_size == entry.bytes and hash_file(path, advance=lambda _: show_life()) == entry.sha256:
            del wanted[path.name]
        else:
            path.unlink()
    return list(wanted.values())


def _check_space(folder: Path, *, needed_bytes: int) -> None:
    free = free_bytes(folder)
    if free < needed_bytes:
        raise CheckpointError(
            f"{folder}: {format_bytes(needed_bytes)} are still to be downloaded and {format_bytes(free)} are free there;"
            " free space on that disk"
        )
