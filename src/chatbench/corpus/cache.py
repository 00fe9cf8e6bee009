"""Corpora made behind the scenes are kept, so that the same files are preprocessed only once.

An entry is a whole corpus folder named by what decides it. A run gets links to its files, or copies
across file systems, so it needs the cache no more afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from chatbench import console
from chatbench.corpus.build import preprocess, program_versions
from chatbench.corpus.reports.describing import recorded
from chatbench.corpus.shards import KIND
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.errors import EnvironmentFault, IntegrityError, InUseError
from chatbench.settings import PreprocessSettings
from chatbench.settings.base import replace
from chatbench.storage import hash_file, new_folder, remove_folder, verify
from chatbench.text.tokenizer_files import FILES

# Entries kept, the ones used last.
_MOST = 16


def cache_folder() -> Path | None:
    """CHATBENCH_CACHE, else XDG's cache folder; None without a home."""
    if given := os.environ.get("CHATBENCH_CACHE"):
        return Path(given)
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the XDG specification has others ignored
        return Path(named, "chatbench")
    home = os.path.expanduser("~")
    return Path(home, ".cache", "chatbench") if os.path.isabs(home) else None


def cached_bytes(folder: Path) -> int:
    """What all entries take."""
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process may tidy up meanwhile
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


def preprocess_once(settings: PreprocessSettings) -> None:
    """`preprocess`, or a copy of what it made before of the same files with the same settings,
    tokenizer and program. Raises as `preprocess`; trouble with the cache is never a reason to
    fail."""
    place = cache_folder()
    if place is None or "-" in settings.inputs:
        preprocess(settings)
        return
    entry = place / "corpora" / _key(settings)
    try:
        _fill(entry, settings)
        _take(entry, Path(settings.out))
    except (InUseError, EnvironmentFault, IntegrityError, OSError):
        # In use, full, read-only, or tidied up by another process meanwhile.
        preprocess(settings)


def _fill(entry: Path, settings: PreprocessSettings) -> None:
    """See to it that the entry is there and whole."""
    if entry.is_dir():
        try:
            verify(entry, KIND)
        except IntegrityError:
            remove_folder(entry)
        else:
            os.utime(entry)
            console.say(f"{', '.join(settings.inputs)}: preprocessed before, taken from {entry}")
            return
    preprocess(replace(settings, out=str(entry), overwrite=True))
    entries = sorted(
        (e for e in entry.parent.iterdir() if not e.name.startswith(".")),
        key=lambda path: path.stat().st_mtime_ns,
    )
    for old in entries[:-_MOST]:
        if old != entry:
            remove_folder(old)


def _take(entry: Path, out: Path) -> None:
    """The entry's files as a folder of their own, which no later change of the cache reaches."""
    manifest = verify(entry, KIND)
    with new_folder(out, KIND, manifest.info, known=manifest.files, replace=True) as folder:
        for name in manifest.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(entry / name, target)
            except OSError:
                shutil.copyfile(entry / name, target)


def _key(settings: PreprocessSettings) -> str:
    """Of everything that decides the corpus: contents, not dates."""
    found, _ = find_inputs(settings.inputs, Path(settings.out))
    aside = [Path(name) for name in (settings.tokenizer, settings.template) if name is not None]
    files = [entry.path for entry in found]
    files += [path for place in aside for path in (place, *map(place.joinpath, FILES))]
    told = [(os.fsencode(path.absolute()), hash_file(path)) for path in files if path.is_file()]
    key = msgspec.json.encode([program_versions(), recorded(settings), told])
    return hashlib.sha256(key).hexdigest()[:32]
