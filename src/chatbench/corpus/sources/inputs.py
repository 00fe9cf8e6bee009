"""What a person named on the command line → the files to read, in one order, each of them once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from chatbench import console
from chatbench.corpus.document import Failure
from chatbench.corpus.sources.compression import zstandard_module
from chatbench.errors import DataError, UsageError, UserError
from chatbench.storage import MANIFEST, read_manifest

_LARGEST_STATE = 1 << 24
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
_T = TypeVar("_T")


class Input(NamedTuple):
    """A regular file as it was when it was found. `name` is its path as text."""

    path: Path
    name: str
    bytes: int
    mtime_ns: int


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct, rename={"data_files": "_data_files"}):
    """state.json of a saved Hugging Face dataset, as far as we need it."""

    data_files: list[_DataFile]


class _Found(NamedTuple):
    path: str
    identity: int
    size: int
    mtime_ns: int


def written(path: str | Path) -> str:
    """The path as text that can be stored; bytes of it that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def find_inputs(inputs: Sequence[str], exclude: Path | None) -> tuple[list[Input], list[Failure]]:
    """The regular files that `inputs` (files, folders, globs) name, and what could not be one.

    Folders are walked without hidden entries, each real folder once; a Hugging Face dataset folder
    gives its data files alone. `exclude` and all in it are left out, and so are folders that
    chatbench made, with a notice. Sorted by the bytes of the
    path; a file reached twice is there once, by its first name. Nothing is opened but the state
    files of datasets. Raises UsageError for a path that does not exist or a pattern that matches
    nothing, or for zstd files without their package, DataError when nothing is found.
    """
    search = _Search(exclude)
    for name in inputs:
        if os.path.lexists(name):
            search.add(name)
        elif not search.add_pattern(name):
            absent = "matches no file" if _is_pattern(name) else "does not exist"
            raise UsageError(f"{written(name)} {absent}", hint="check the path")
    for folder in sorted(search.ours, key=os.fsencode):
        console.notice(
            f"{written(folder)} was made by chatbench and is left out; to read it, name its files"
        )
    found = sorted(search.found, key=lambda entry: os.fsencode(entry.path))
    failures = sorted(search.failures, key=lambda failure: (failure.source, failure.reason))
    failures = [f for n, f in enumerate(failures) if n == 0 or f != failures[n - 1]]
    seen: set[int] = set()
    files = []
    for entry in found:
        if entry.identity not in seen:
            seen.add(entry.identity)
            path = Path(entry.path)
            files.append(Input(path, written(path), entry.size, entry.mtime_ns))
    if any(file.name.endswith((".zst", ".zstd", ".tzst")) for file in files):
        zstandard_module()
    if not files:
        reasons = ", ".join(sorted({f"{f.reason}: {f.source}" for f in failures})[:3])
        raise DataError(
            f"no files in {', '.join(map(written, inputs))}" + (f" ({reasons})" if reasons else ""),
            hint="give a folder that holds text",
        )
    return files, failures


class _Search:
    """Files and failures as they are met; remembers the real folders it has been in."""

    def __init__(self, exclude: Path | None) -> None:
        self.found: list[_Found] = []
        self.failures: list[Failure] = []
        self.ours: list[str] = []
        self._visited: set[int] = set()
        self._excluded = None if exclude is None else os.path.realpath(exclude)

    def add(self, path: str) -> None:
        """A path that a person named: hidden or not, a link or not."""
        path = str(Path(path))
        status = self._status(path)
        if status is None or self._is_excluded(path):
            return
        if stat.S_ISDIR(status.st_mode):
            self._walk(path, status)
        else:
            self._add_file(path, status)

    def add_pattern(self, pattern: str) -> bool:
        """Everything that a glob matches, `**` for any folders; whether there was anything."""
        if not _is_pattern(pattern):
            return False
        parts = Path(pattern).parts
        fixed = next(n for n, part in enumerate(parts) if _is_pattern(part))
        base = str(Path(*parts[:fixed])) if fixed else "."
        matches = sorted(_expand(base, parts[fixed:], set()), key=os.fsencode)
        for match in dict.fromkeys(matches):
            self.add(match)
        return bool(matches)

    def _walk(self, folder: str, status: os.stat_result) -> None:
        """Real folders first, then linked ones, so that a file goes by its own name."""
        linked: list[str] = []
        waiting = [(folder, status)]
        while waiting or linked:
            if waiting:
                folder, status = waiting.pop()
                if _identity(status) not in self._visited:
                    self._visited.add(_identity(status))
                    waiting += reversed(self._list(folder, linked))
                continue
            linked.sort(key=os.fsencode, reverse=True)
            path = linked.pop()
            reached = self._status(path)
            if reached is not None and not self._is_excluded(path):
                waiting.append((path, reached))

    def _list(self, folder: str, linked: list[str]) -> list[tuple[str, os.stat_result]]:
        """Takes the files of a folder; returns its folders, in order, and adds linked ones."""
        try:
            with os.scandir(folder) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self._fail(folder, "unreadable", error.strerror or str(error))
            return []
        listed.sort(key=lambda entry: os.fsencode(entry.name))
        if any(entry.name == MANIFEST for entry in listed) and _is_ours(folder):
            # What was held out there must not come back as training text.
            self.ours.append(folder)
            return []
        wanted = self._dataset_files(folder, {entry.name for entry in listed})
        folders = []
        for entry in listed:
            if wanted is not None and entry.name not in wanted:
                continue
            path = os.path.join("" if folder == "." else folder, entry.name)
            status = self._status(path)
            if status is None:
                continue
            if entry.is_symlink():
                if self._is_excluded(path):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    linked.append(path)
                    continue
            if not stat.S_ISDIR(status.st_mode):
                self._add_file(path, status)
            elif self._excluded is None or not self._is_excluded(path):
                folders.append((path, status))
        return folders

    def _dataset_files(self, folder: str, names: set[str]) -> set[str] | None:
        """The entries that hold the data of a Hugging Face dataset; None for any other folder."""
        if "dataset_dict.json" in names:
            splits = self._state(folder, "dataset_dict.json", dict[str, list[str]])
            wanted = (splits or {}).get("splits")
        elif {"state.json", "dataset_info.json"} <= names:
            state = self._state(folder, "state.json", _State)
            wanted = None if state is None else [file.filename for file in state.data_files]
        else:
            return None
        if wanted is None:
            return {name for name in names if not name.endswith(".json")}
        for name in wanted:
            if name not in names:
                self._fail(os.path.join(folder, name), "missing file", "its dataset names it")
        return set(wanted)

    def _state(self, folder: str, name: str, kind: type[_T]) -> _T | None:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as handle:
                return msgspec.json.decode(handle.read(_LARGEST_STATE), type=kind)
        except OSError as error:
            self._fail(path, "unreadable", error.strerror or str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(path, "bad JSON", str(error))
        return None

    def _add_file(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self._fail(path, "not a regular file", _KINDS.get(stat.S_IFMT(status.st_mode), ""))
        elif not os.access(path, os.R_OK):
            self._fail(path, "unreadable", "no permission to read it")
        else:
            self.found.append(_Found(path, _identity(status), status.st_size, status.st_mtime_ns))

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path)
        except FileNotFoundError:
            # A file that another program has just removed was never there.
            if os.path.islink(path):
                self._fail(path, "dangling link", f"to {written(os.readlink(path))}")
        except OSError as error:
            self._fail(path, "unreadable", error.strerror or str(error))
        return None

    def _is_excluded(self, path: str) -> bool:
        if self._excluded is None:
            return False
        real = os.path.realpath(path)
        return real == self._excluded or real.startswith(os.path.join(self._excluded, ""))

    def _fail(self, path: str, reason: str, detail: str) -> None:
        self.failures.append(Failure(written(path), reason, detail))


def _is_ours(folder: str) -> bool:
    try:
        return read_manifest(Path(folder)) is not None
    except (UserError, OSError):
        return False


def _identity(status: os.stat_result) -> int:
    """Device and inode as one number, which takes less memory than a pair."""
    return status.st_dev << 64 | status.st_ino


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _expand(folder: str, parts: Sequence[str], visited: set[int]) -> Iterator[str]:
    """Paths in `folder` that match; hidden ones only where the pattern names the dot. Folders that
    `**` has led through once are not entered again, so that links cannot lead in circles."""
    part, rest = parts[0], parts[1:]
    try:
        if part == "**":
            if _identity(os.stat(folder)) in visited:
                return
            visited.add(_identity(os.stat(folder)))
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        return
    if part == "**" and rest:
        yield from _expand(folder, rest, set())
    for entry in listed:
        if entry.name.startswith(".") and not part.startswith("."):
            continue
        path = entry.name if folder == "." else os.path.join(folder, entry.name)
        if part == "**":
            if entry.is_dir():
                yield from _expand(path, parts, visited)
            elif not rest:
                yield path
        elif fnmatchcase(entry.name, part):
            if not rest:
                yield path
            elif entry.is_dir():
                yield from _expand(path, rest, set())
