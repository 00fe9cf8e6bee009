"""The one door for writing files: a folder that can be seen is complete, and load verifies it.

Write under a temporary name, fsync, rename, fsync the parent (Pillai et al., OSDI 2014, on why each
step is needed). A folder's `manifest.json` names every file with its size and SHA-256 and is
written last.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from chatbench.errors import EnvironmentFault, IntegrityError, InUseError, UsageError, UserError

MANIFEST = "manifest.json"
LOCK = ".lock"
FORMAT = "chatbench/1"


class FileEntry(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format: str
    kind: str
    files: dict[str, FileEntry]
    info: dict[str, Any] = {}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into one sentence with exit code 5."""
    try:
        yield
    except Exception as error:
        refused = os_error_in(error)
        if refused is None:
            raise
        raise explain_os_error(refused, path) from error


def os_error_in(error: Exception) -> OSError | None:
    """What the operating system refused, if that is what `error` says.

    safetensors and tokenizers raise their own errors, which end in `(os error 28)`.
    """
    if isinstance(error, OSError):
        return error
    found = None if isinstance(error, UserError) else _FOREIGN_OS_ERROR.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


_FOREIGN_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def explain_os_error(error: OSError, path: Path) -> EnvironmentFault:
    """The EnvironmentFault for an OSError, with the free space when the disk is full."""
    why = os.strerror(error.errno) if error.errno else str(error)
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with_space = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        free = shutil.disk_usage(with_space).free / 1e6
        hint = f"{free:.1f} MB are free there: make room, then run the same command again"
    return EnvironmentFault(f"cannot write {path}: {why}", hint=hint)


def fsync_file(path: Path, flags: int = os.O_RDONLY) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    fsync_file(path, os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield a name to write to; on success it becomes `final`, durably. Raises EnvironmentFault."""
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    with disk_errors(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync_file(temporary)
            os.replace(temporary, final)
            fsync_folder(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically and durably. Raises EnvironmentFault."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Indented JSON, atomically."""
    write_file(path, pretty_json(value))


def pretty_json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, LOCK))


@contextmanager
def new_folder(
    final: Path, kind: str, info: dict[str, Any] | None = None, *, replace: bool = False,
    known: dict[str, FileEntry] | None = None,
) -> Iterator[Path]:  # fmt: skip
    """Yield an empty folder to fill; on success it becomes `final`, whole, or not at all.

    `info` is read when the block ends, so it may be filled inside; so is `known`: files that were
    made `durable`, by their names there. Two writers for one `final` exclude each other
    (InUseError); what a killed writer left behind is cleared.
    Raises EnvironmentFault for disk trouble, UsageError when `final` exists and not `replace`.
    """
    if final.name in ("", ".."):
        raise UsageError(f"{final} is no name for a folder", hint="choose another place")
    _require_free(final, replace)
    staging = final.with_name(f".{final.name}.partial")
    with FolderLock(staging):
        try:
            with disk_errors(final):
                _clear(staging)
                yield staging
                _seal(staging, kind, info or {}, known or {})
                _require_free(final, replace)  # somebody may have come since the first look
                _move_into_place(staging, final)
        except BaseException:
            with suppress(OSError):
                _clear(staging)
                # The lock goes last: from then on the folder may be another writer's.
                (staging / LOCK).unlink()
                staging.rmdir()
            raise


def _require_free(final: Path, replace: bool) -> None:
    if final.is_file() if replace else final.exists():
        raise UsageError(f"{final} exists already", hint="choose another place")


def require_own(final: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse to write over anything, or with `overwrite` over anything but a `kind` made here.

    Raises UsageError.
    """
    if not final.exists() or (overwrite and final.is_dir() and not any(final.iterdir())):
        return
    if not overwrite:
        raise UsageError(
            f"{final} exists already", hint="choose another -o, or replace it with --overwrite"
        )
    try:
        manifest = read_manifest(final)
    except IntegrityError:
        manifest = None
    if manifest is None or manifest.kind != kind:
        raise UsageError(
            f"{final} exists already and is not a {kind}, so it is not replaced",
            hint="choose another place",
        )


def _clear(staging: Path) -> None:
    for entry in staging.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def durable(path: Path) -> FileEntry:
    """Bring a written file to the disk; what a manifest says of it."""
    fsync_file(path)
    return FileEntry(path.stat().st_size, hash_file(path))


def _seal(staging: Path, kind: str, info: dict[str, Any], known: dict[str, FileEntry]) -> None:
    files = {}
    for path in _files_below(staging):
        name = path.relative_to(staging).as_posix()
        files[name] = known.get(name) or durable(path)
    for folder in sorted({path.parent for path in _files_below(staging)}, reverse=True):
        fsync_folder(folder)
    write_json(staging / MANIFEST, Manifest(FORMAT, kind, files, info))


def _move_into_place(staging: Path, final: Path) -> None:
    # A killed writer may have left its `old`.
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = final.exists()
    if replaced:
        os.rename(final, old)
    try:
        os.rename(staging, final)
    except OSError:
        if replaced:
            os.rename(old, final)
        raise
    # Not before: a folder without its lock is free to be cleared.
    (final / LOCK).unlink()
    fsync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Clear what killed writers left in `folder`; a folder whose replacement never came returns."""
    for old in folder.glob(".*.old"):
        final = folder / old.name.removeprefix(".").removesuffix(".old")
        if final.exists() or not (old / MANIFEST).is_file():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, final)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for lock in folder.glob(f"*/{LOCK}"):
        lock.unlink()


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None when it has none of ours. Raises IntegrityError when
    unreadable."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) and b'"format"' not in path.read_bytes():
            return None  # another program's
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise IntegrityError(f"{path} has format {manifest.format!r}, this program reads {FORMAT}")
    return manifest


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Check every file of `folder` against its manifest, sizes first, then SHA-256.

    Raises IntegrityError naming the file and what differs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise IntegrityError(
            f"{folder} has no {MANIFEST}, so it is not a finished {kind or 'folder'}"
        )
    if kind is not None and manifest.kind != kind:
        raise IntegrityError(f"{folder} holds a {manifest.kind}, not a {kind}")
    verify_files(folder, manifest)
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """The part of `verify` that reads the files."""
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            what = f"{path} {found}, its manifest says {entry.bytes}"
            raise IntegrityError(what, hint=_REPAIR_HINT)
    for name, entry in manifest.files.items():
        if hash_file(folder / name) != entry.sha256:
            raise IntegrityError(
                f"{folder / name} does not match its checksum, so it was changed or damaged",
                hint=_REPAIR_HINT,
            )


_REPAIR_HINT = "restore it from a copy or make it again"


class FolderLock:
    """One writer per folder, held by the kernel, so a killed holder leaves nothing to clean up.

    Makes the folder where it is absent. Raises InUseError when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._handle = -1
        self._tries = 0

    def __enter__(self) -> FolderLock:
        with disk_errors(self._path):
            while not self._open():
                pass
        # The name is for the message of who comes second; a full disk has no room for it.
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return self

    def _open(self) -> bool:
        """Whether the lock is ours, and still that of the folder."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, FileExistsError):
            # Moved away under our hands, unless something else bears its name or the place takes
            # no folders, as /proc does not.
            self._tries += 1
            if self._tries > 100 or (os.path.lexists(folder) and not folder.is_dir()):
                raise
            return False
        self._take()
        if self._is_current():
            return True
        os.close(self._handle)
        return False

    def _take(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._handle, 200, 0).decode(errors="replace").split()
            os.close(self._handle)
            who = f"process {owner[0]} on {owner[1]}" if len(owner) == 2 else "another process"
            raise InUseError(
                f"{self._path.parent} is in use by {who}",
                hint="wait for it, or choose another place",
            ) from None

    def _is_current(self) -> bool:
        # The holder before us may have moved the folder away between our open and our lock.
        try:
            return os.stat(self._path).st_ino == os.fstat(self._handle).st_ino
        except FileNotFoundError:
            return False

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)


class AppendLog:
    """JSON Lines that only grow, and can be cut back to what a checkpoint has seen."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self._path = path
        with disk_errors(path):
            self._handle = open(path, "ab")  # noqa: SIM115  (closed by close())
            self._handle.truncate(min(keep_bytes, self._handle.tell()))
            self._handle.seek(0, os.SEEK_END)

    def append(self, row: object) -> None:
        with disk_errors(self._path):
            self._handle.write(msgspec.json.encode(row) + b"\n")
            self._handle.flush()

    def sync(self) -> int:
        """Make all rows durable; the size in bytes that a checkpoint should remember."""
        with disk_errors(self._path):
            self._handle.flush()
            os.fsync(self._handle.fileno())
            return self._handle.tell()

    def close(self) -> None:
        self._handle.close()


def remove_folder(path: Path) -> None:
    """Delete a folder that was written here; a half-deleted one is never seen under its name."""
    with disk_errors(path):
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        if path.exists():
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
