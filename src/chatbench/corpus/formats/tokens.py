"""nanoGPT's .bin: uint16 token ids without a header → the texts they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats.prose import named, pack
from chatbench.corpus.formats.source import BLOCK_BYTES, Source, package
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.errors import UsageError

_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_WINDOW = 1 << 15
_LONGEST_CHARACTER = 16
Ids = npt.NDArray[np.uint16]


class Run(NamedTuple):
    """Token ids that follow each other; `ends` when the document ends behind them."""

    ids: Ids
    ends: bool


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Only the ending tells: any bytes are ids of something."""
    return name.endswith(".bin")


def read(source: Source) -> Iterator[Record]:
    """`name[N]` is the N-th document; longer ones are cut into passages, `name[N]:LINE`.

    Documents are parted at the tokenizer's end-of-text id. Raises UsageError for a tokenizer that
    cannot be opened.
    """
    if source.options.bin_tokenizer is None:
        hint = "give --bin-tokenizer the tokenizer.json that the file was made with"
        yield Failure(source.name, "token ids without a tokenizer", hint)
        return
    tokenizer = _open(Path(source.options.bin_tokenizer))
    ends = [tokenizer.token_to_id(end) for end in _ENDS]
    end = next((number for number in ends if number is not None), None)
    runs = _runs(source, end)
    limit = source.options.passage_chars
    number = 0
    for run in runs:
        if isinstance(run, Failure):
            yield run
            continue
        number += 1
        where = f"{source.name}[{number}]"
        longest = source.options.max_record_bytes
        lines = _lines(tokenizer, _document(run, runs), where, longest)
        yield from named(pack(lines, limit), where)


def _open(path: Path) -> Any:
    tokenizers = package("tokenizers", "reading token ids", "pip install tokenizers")
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} does not exist", hint="give --bin-tokenizer a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        # The package raises bare Exception for whatever is wrong with a file.
        raise UsageError(f"{file} is no tokenizer: {error}") from error


def _runs(source: Source, end: int | None) -> Iterator[Run | Failure]:
    """Ids up to an end-of-text or the end of a block, and whether the document ends there."""
    odd = b""
    while block := odd + source.handle.read(BLOCK_BYTES):
        even = len(block) // 2 * 2
        if not even:
            yield Failure(source.name, "odd number of bytes", "the last one is half a token id")
            return
        odd = block[even:]
        ids = np.frombuffer(block[:even], "<u2")
        start = 0
        for place in np.flatnonzero(ids == end).tolist() if end is not None else ():
            yield Run(ids[start:place], True)
            start = place + 1
        if start < len(ids):
            yield Run(ids[start:], False)


def _document(first: Run, runs: Iterator[Run | Failure]) -> Iterator[Run]:
    """The runs of one document, in windows; the last one ends it, whatever it says."""
    run: Run | Failure | None = first
    while isinstance(run, Run) and not run.ends:
        yield from (
            Run(run.ids[at : at + _WINDOW], False) for at in range(0, len(run.ids), _WINDOW)
        )
        run = next(runs, None)
    rest = run.ids if isinstance(run, Run) else first.ids[:0]
    for at in range(0, len(rest), _WINDOW):
        yield Run(rest[at : at + _WINDOW], False)
    yield Run(rest[:0], True)


def _lines(
    tokenizer: Any, runs: Iterator[Run], where: str, longest: int
) -> Iterator[tuple[int, str] | Failure]:
    """The decoded lines; a character may lie across windows. A line of more than `longest`
    characters comes in slices of the same number."""
    size = tokenizer.get_vocab_size()
    held: list[int] = []
    number, length = 1, 0
    parts: list[str] = []
    for run in runs:
        ids = held + run.ids.tolist()
        if ids and max(ids) >= size:
            detail = f"{max(ids)}; the tokenizer has {size}"
            yield Failure(where, "unknown token ids", detail)
            held = []
            continue
        text, held = _whole_characters(tokenizer, ids, run.ends)
        for place, part in enumerate(text.split("\n")):
            if place:
                yield number, "".join(parts)
                number, length, parts = number + 1, 0, []
            parts.append(part)
            length += len(part)
            if length > longest:
                *full, rest = _slices("".join(parts), longest)
                yield from ((number, piece) for piece in full)
                length, parts = len(rest), [rest]
    yield number, "".join(parts)


def _slices(text: str, longest: int) -> Iterator[str]:
    """The text in slices that end behind a space where one lies in their second half."""
    at, longest = 0, max(longest, 1)
    while len(text) - at > longest:
        end = text.rfind(" ", at + longest // 2, at + longest) + 1 or at + longest
        yield text[at:end]
        at = end
    yield text[at:]


def _whole_characters(tokenizer: Any, ids: list[int], final: bool) -> tuple[str, list[int]]:
    """Text, and the ids at the end that are the beginning of a character."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    if final or not text.endswith("\ufffd"):
        return text, []
    for cut in range(1, min(_LONGEST_CHARACTER, len(ids)) + 1):
        shorter = tokenizer.decode(ids[:-cut], skip_special_tokens=False)
        if not shorter.endswith("\ufffd"):
            return shorter, ids[-cut:]
    return text, []
