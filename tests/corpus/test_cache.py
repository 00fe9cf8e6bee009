"""What was preprocessed behind the scenes once is not preprocessed again, and never wrong."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatbench.corpus import cache
from chatbench.corpus.cache import cache_folder, cached_bytes, preprocess_once
from chatbench.corpus.shards import KIND
from chatbench.errors import DataError, UsageError
from chatbench.settings import PreprocessSettings
from chatbench.storage import verify
from conftest import sample_chats, write_jsonl


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where preprocess has been at work."""
    places: list[str] = []
    real = cache.preprocess

    def counted(settings: PreprocessSettings) -> Path:
        places.append(settings.out)
        return real(settings)

    monkeypatch.setattr(cache, "preprocess", counted)
    return places


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "聊天 chats.jsonl", sample_chats(20))


def settings_of(data: Path, out: Path, tokenizer: Path, **more: Any) -> PreprocessSettings:
    return PreprocessSettings(
        inputs=[str(data)], out=str(out), tokenizer=str(tokenizer), profile=False,
        **{"overwrite": True} | more,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def entries() -> list[Path]:
    place = cache_folder()
    assert place is not None
    return sorted((place / "corpora").iterdir())


def test_the_second_time_the_same_corpus_comes_from_the_cache(
    data: Path, corpus_folder: Path, tmp_path: Path, made: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    outs = [tmp_path / "one", tmp_path / "other"]
    for out in outs:
        preprocess_once(settings_of(data, out, corpus_folder / "tokenizer"))
        verify(out, KIND)
    assert made == [str(entries()[0])]
    assert contents(outs[0]) == contents(outs[1]) == contents(entries()[0])
    assert "preprocessed before" in capsys.readouterr().err
    place = cache_folder()
    assert place is not None
    assert cached_bytes(place) == sum(map(len, contents(entries()[0]).values()))


@pytest.mark.parametrize("change", ["contents", "settings", "tokenizer", "template", "name"])
def test_whatever_decides_a_corpus_makes_another_entry(
    data: Path, corpus_folder: Path, tmp_path: Path, made: list[str], change: str
) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for path in (corpus_folder / "tokenizer").iterdir():
        (tokenizer / path.name).write_bytes(path.read_bytes())
    preprocess_once(settings_of(data, tmp_path / "one", tokenizer))
    more: dict[str, Any] = {}
    if change == "contents":
        before = data.stat()
        data.write_text(data.read_text("utf-8").replace("cost", "cast"), "utf-8")
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))  # dates say nothing
        assert data.stat().st_size == before.st_size
    elif change == "settings":
        more = {"val_fraction": 0.25}
    elif change == "tokenizer":
        with open(tokenizer / "tokenizer.json", "a") as handle:
            handle.write("\n")
    elif change == "template":
        more = {"template": "plain"}
    else:
        data = data.rename(tmp_path / "other.jsonl")
    preprocess_once(settings_of(data, tmp_path / "two", tokenizer, **more))
    assert len(entries()) == len(made) == 2


def test_a_damaged_entry_is_made_anew(
    data: Path, corpus_folder: Path, tmp_path: Path, made: list[str], rng: random.Random
) -> None:
    settings = settings_of(data, tmp_path / "one", corpus_folder / "tokenizer")
    preprocess_once(settings)
    wanted = contents(tmp_path / "one")
    listed = [name for name, entry in verify(entries()[0], KIND).files.items() if entry.bytes]
    victim = entries()[0] / rng.choice(listed)
    damaged = victim.read_bytes()[:-1]
    victim.unlink()  # a link to it in the run stays as it was
    victim.write_bytes(damaged)
    preprocess_once(settings_of(data, tmp_path / "two", corpus_folder / "tokenizer"))
    assert len(made) == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one") == wanted
    verify(entries()[0], KIND)


def test_across_file_systems_files_are_copied(
    data: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(cache.os, "link", refuse)
    preprocess_once(settings_of(data, tmp_path / "one", corpus_folder / "tokenizer"))
    verify(tmp_path / "one", KIND)
    assert {p.stat().st_nlink for p in (tmp_path / "one").rglob("*") if p.is_file()} == {1}


def test_a_cache_that_cannot_be_used_is_no_reason_to_fail(
    data: Path, corpus_folder: Path, tmp_path: Path, made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("CHATBENCH_CACHE", str(blocked / "cache"))
    preprocess_once(settings_of(data, tmp_path / "one", corpus_folder / "tokenizer"))
    verify(tmp_path / "one", KIND)
    assert made[-1] == str(tmp_path / "one")


def test_an_entry_in_use_is_not_waited_for(
    data: Path, corpus_folder: Path, tmp_path: Path, made: list[str]
) -> None:
    settings = settings_of(data, tmp_path / "one", corpus_folder / "tokenizer")
    place = cache_folder()
    assert place is not None
    entry = place / "corpora" / cache._key(settings)
    code = (
        "import sys; from pathlib import Path; from chatbench.storage import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])):\n    print(flush=True); sys.stdin.read()"
    )
    staging = entry.with_name(f".{entry.name}.partial")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, staging], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        preprocess_once(settings)
    finally:
        holder.communicate(b"")
    verify(tmp_path / "one", KIND)
    assert not entry.exists()


def test_the_entries_used_last_are_kept(
    data: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST", 2)
    keys = []
    for number in range(3):
        settings = settings_of(
            data, tmp_path / f"out{number}", corpus_folder / "tokenizer",
            val_fraction=0.1 + number / 20,
        )  # fmt: skip
        preprocess_once(settings)
        keys.append(cache._key(settings))
        for age, key in enumerate(reversed(keys)):  # clocks may be coarse
            entry = entries()[0].parent / key
            if entry.exists():
                os.utime(entry, (1e9 - age, 1e9 - age))
    assert sorted(path.name for path in entries()) == sorted(keys[1:])
    for number in range(3):
        verify(tmp_path / f"out{number}", KIND)


def test_mistakes_are_told_as_ever(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        preprocess_once(
            settings_of(tmp_path / "no.jsonl", tmp_path / "one", corpus_folder / "tokenizer")
        )
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"messages": []}])
    with pytest.raises(DataError, match="nothing to keep"):
        preprocess_once(settings_of(empty, tmp_path / "one", corpus_folder / "tokenizer"))
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"CHATBENCH_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/chatbench"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/chatbench"),
        ({"HOME": "/home/me"}, "/home/me/.cache/chatbench"),
    ],
)
def test_where_the_cache_lies(
    environment: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHATBENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(wanted)


def test_info_tells_where_the_cache_is_and_what_it_takes(
    data: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    from chatbench.console import format_count
    from chatbench.info import installation

    place = cache_folder()
    assert installation()["cache"] == f"{place}, 0B"
    preprocess_once(settings_of(data, tmp_path / "one", corpus_folder / "tokenizer"))
    size = sum(map(len, contents(tmp_path / "one").values()))
    assert installation()["cache"] == f"{place}, {format_count(size)}B"
