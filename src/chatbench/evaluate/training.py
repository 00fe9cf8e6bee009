"""The text a model was trained on: what it may copy, and what simple baselines learn from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chatbench.corpus.shards import Corpus, Ids, Weights, open_corpus
from chatbench.errors import UserError
from chatbench.evaluate.testset import is_corpus, read_documents
from chatbench.text.tokenizer import Tokenizer


class Exchange(NamedTuple):
    """A question and its reply."""

    question: str
    reply: str


def find_training(folder: Path | None, given: str | None) -> Path | None:
    """Where the training text lies: as given, else the corpus that the run of a model folder made
    or names. None when it is not there any more."""
    if given is not None:
        return Path(given)
    if folder is None:
        return None
    run = folder.parent if folder.name == "model" else folder
    if run.parent.name == "checkpoints":
        run = run.parent.parent
    if is_corpus(run / "corpus"):
        return run / "corpus"
    try:
        named = tomllib.loads((run / "config.toml").read_text("utf-8")).get("data")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    if isinstance(named, list):  # of a finetune on several, the first
        named = next(iter(named), None)
    return Path(named) if isinstance(named, str) and Path(named).exists() else None


class Training:
    """Training text, from a corpus folder's shards or from files."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises UsageError, IntegrityError."""
        self.path = path
        self.corpus: Corpus | None = open_corpus(path) if is_corpus(path) else None
        self.documents = [] if self.corpus is not None else read_documents(str(path))[0]

    def texts(self) -> Iterator[str]:
        """Every document as readable text, markup left out."""
        if self.corpus is None:
            yield from (document.joined() for document in self.documents)
            return
        entries, split = self.corpus.tokenizer.token_bytes, self.corpus.split("train")
        for number in range(len(split)):
            # Control tokens stand for no bytes; nothing may run on across them.
            spelled = [entries[i] or b"\n" for i in split.ids(number).tolist()]
            yield b"".join(spelled).decode("utf-8", errors="ignore")

    def exchanges(self) -> Iterator[Exchange]:
        """Every reply that was learned, with what it answers."""
        if self.corpus is not None:
            split = self.corpus.split("train")
            for number in range(len(split)):
                yield from read_exchanges(
                    self.corpus.tokenizer, split.ids(number), split.weights(number)
                )
            return
        for document in self.documents:
            asked: str | None = None
            for message in document.messages or ():
                if message.role == "user":
                    asked = message.content
                elif message.role == "assistant" and asked is not None and message.weight:
                    yield Exchange(asked, message.content)

    def ids(self, tokenizer: Tokenizer) -> Iterator[list[int]]:
        """Every document as ids of `tokenizer`."""
        if self.corpus is not None and self.corpus.tokenizer.digest == tokenizer.digest:
            split = self.corpus.split("train")
            yield from (split.ids(number).tolist() for number in range(len(split)))
            return
        for text in self.texts():
            yield [*tokenizer.encode(text), tokenizer.end_of_text]


def open_training(folder: Path | None, given: str | None) -> Training | None:
    """The training text of a model, if it can be read; what was given must be.

    Raises UserError for a `given` path that cannot be read.
    """
    path = find_training(folder, given)
    if path is None:
        return None
    try:
        return Training(path)
    except UserError:
        if given is not None:
            raise
        return None


def read_exchanges(tokenizer: Tokenizer, ids: Ids, weights: Weights) -> Iterator[Exchange]:
    """Questions and replies of a rendered conversation: what is learned answers what the last
    turn of a person says before it. None where the template does not mark such turns."""
    opening = tokenizer.template.user_turn if any(weights == 0) else ()
    if not opening:
        return
    listed, learned = ids.tolist(), weights.tolist()
    begin = 0
    while begin < len(listed):
        end = begin
        while end < len(listed) and learned[end] == learned[begin]:
            end += 1
        if learned[begin]:
            asked = _last_turn(tokenizer, listed[:begin], opening)
            reply = tokenizer.decode(listed[begin:end]).strip()
            if asked and reply:
                yield Exchange(asked, reply)
        begin = end


def _last_turn(tokenizer: Tokenizer, ids: list[int], opening: tuple[int, ...]) -> str:
    """What stands after the last `opening`, up to the next control token."""
    size = len(opening)
    for at in range(len(ids) - size, -1, -1):
        if tuple(ids[at : at + size]) == opening:
            rest = ids[at + size :]
            stop = next((n for n, i in enumerate(rest) if i in tokenizer.control_ids), len(rest))
            return tokenizer.decode(rest[:stop]).strip()
    return ""
