"""Dialogue in older clothes: ChatML text, DailyDialog, ParlAI's two text formats, ChatterBot's
YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from chatbench.conversation import Message
from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats.source import MAX_TEXT_BYTES, Source, package
from chatbench.corpus.formats.turns import role_of
from chatbench.corpus.sources.blob import ReadOptions

_TURN_END = "__eou__"
# Topic, acts and emotions as numbers behind the last turn (XDailyDialog).
_ANNOTATIONS = re.compile(r"(?<=__eou__)\t[\d\s]+$")
_START, _END = "<|im_start|>", "<|im_end|>"
_MARK = re.compile(r"(<\|im_start\|>|<\|im_end\|>)")
_FIELDS = re.compile(r"(?:text|labels|eval_labels):[^\t]*\t")
_NUMBERED = re.compile(r"(\d+) (.*)")
_MAX_DEPTH = 100
_YAML_KEY = re.compile(r"^(categories|conversations):[ \t]*$", re.MULTILINE)
_YAML_TURN = re.compile(r"^conversations:[ \t]*\n(?:[ \t]*(?:#.*)?\n)*[ \t]*-[ \t]+-", re.MULTILINE)


# ---- ChatML


def matches_chatml(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    return re.match(r"\s*<\|im_start\|>\w+", text) is not None


def read_chatml(source: Source) -> Iterator[Record]:
    """A conversation ends at a blank line after a turn, before a system turn, or with the file.
    `name:LINE` is its first line."""
    chat = _ChatML(source)
    for line in source.lines():
        if isinstance(line, Failure):
            yield line
            chat.problem = chat.problem or "a line of it does not decode"
            continue
        yield from chat.take(line[0], line[1])
    yield from chat.flush()


class _ChatML:
    """The conversation that is being read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._clear()

    def _clear(self) -> None:
        self._turns: list[Message] = []
        self._open: list[str] | None = None
        self._start = 0
        self._size = 0
        self.problem = ""

    def take(self, number: int, text: str) -> Iterator[Record]:
        if self._open is None and not text.strip():
            yield from self.flush()
            return
        self._size += len(text)
        if self._size > self._source.options.max_record_bytes:
            self.problem = self.problem or "a turn does not end"
            self._turns, self._open = [], self._open and [""]
        for piece in _MARK.split(text):
            if piece == _START:
                self._close()
                self._open = []
            elif piece == _END:
                self._close()
            elif self._open is not None:
                if not self._open and piece.split()[:1] == ["system"] and self._turns:
                    self._open = None
                    yield from self.flush()
                    self._open = []
                self._start = self._start or number
                self._open.append(piece)
            elif piece.strip():
                self._start = self._start or number
                self.problem = self.problem or "text stands between turns"
        if self._open is not None:
            self._open.append("\n")

    def _close(self) -> None:
        if self._open is None:
            return
        name, _, content = "".join(self._open).partition("\n")
        self._open = None
        try:
            self._turns.append(Message(role_of((name.split() or [""])[0]), content.strip()))
        except ValueError as error:
            self.problem = self.problem or str(error)

    def flush(self) -> Iterator[Record]:
        self._close()
        if self._turns and self._turns[-1] == Message("assistant", ""):
            self._turns.pop()  # the mark after which a model was to write
        where = f"{self._source.name}:{self._start}"
        if self.problem:
            yield Failure(where, "bad conversation", self.problem)
        elif self._turns:
            yield Document(where, messages=tuple(self._turns), shape="chatml")
        self._clear()


# ---- DailyDialog


def matches_dailydialog(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    lines = [line for line in text.split("\n")[:40] if line.strip()][:20]
    return bool(lines) and 10 * sum(_TURN_END in line for line in lines) >= 9 * len(lines)


def read_dailydialog(source: Source) -> Iterator[Record]:
    """A conversation a line, `__eou__` behind each turn; two people take turns (Li et al. 2017)."""
    for line in source.lines():
        if isinstance(line, Failure):
            yield line
            continue
        number, text = line
        where = f"{source.name}:{number}"
        spoken = _ANNOTATIONS.sub("", text)
        said = [turn.strip() for turn in spoken.split(_TURN_END) if turn.strip()]
        if len(said) > 1:
            turns = [Message("assistant" if n % 2 else "user", turn) for n, turn in enumerate(said)]
            yield Document(where, messages=tuple(turns), shape="dailydialog")
        elif said:
            yield Failure(where, "bad conversation", "it has a single turn", text)


# ---- ParlAI


def matches_parlai(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Fields named text and labels; or lines numbered from 1 of which some hold a tab."""
    lines = [line for line in text.split("\n")[:40] if line.strip()]
    if not lines:
        return False
    if _FIELDS.match(lines[0]) and any("labels:" in line for line in lines):
        return True
    numbers = [_NUMBERED.match(line) for line in lines[:-1] or lines]
    found = [int(match[1]) for match in numbers if match]
    steps = all(b in (1, a + 1) for a, b in pairwise(found))
    numbered = len(found) == len(numbers) and found[0] == 1 and steps
    return numbered and any("\t" in line for line in lines)


def read_parlai(source: Source) -> Iterator[Record]:
    """An episode is one conversation; the first label is the reply. `name:LINE` is its first line.

    Lines of the numbered form that have no label are context of the next question.
    """
    turns: list[Message] = []
    context: list[str] = []
    start = 0
    for line in source.lines():
        if isinstance(line, Failure):
            yield line
            continue
        number, text = line
        if not text.strip():
            continue
        parsed = _numbered(text) or _fields(text)
        if parsed is None:
            yield Failure(f"{source.name}:{number}", "bad row", "neither text: nor a number", text)
            continue
        said, reply, begins, ends = parsed
        if begins:
            yield from _episode(source, start, turns, context)
            turns, context, start = [], [], number
        start = start or number
        context.append(said)
        if reply is not None:
            turns += [Message("user", "\n".join(context)), Message("assistant", reply)]
            context = []
        if ends:
            yield from _episode(source, start, turns, context)
            turns, context, start = [], [], 0
    yield from _episode(source, start, turns, context)


def _episode(
    source: Source, start: int, turns: list[Message], context: list[str]
) -> Iterator[Record]:
    where = f"{source.name}:{start}"
    if turns:
        yield Document(where, messages=tuple(turns), shape="parlai")
    elif context:
        yield Failure(where, "bad row", "an episode without labels", "\n".join(context)[:2000])


_Step = tuple[str, str | None, bool, bool]


def _fields(text: str) -> _Step | None:
    """Text, first label, False, and whether the episode ends."""
    fields: dict[str, str] = {}
    for field in text.split("\t"):
        key, colon, value = field.partition(":")
        if colon:
            fields[key.strip()] = value
    if "text" not in fields:
        return None
    labels = fields.get("labels", fields.get("eval_labels"))
    reply = _unescaped(labels.split("|")[0]) if labels else None
    ends = fields.get("episode_done", "").strip().casefold() in ("true", "1")
    return _unescaped(fields["text"]), reply, False, ends


def _numbered(text: str) -> _Step | None:
    """Text, first label, whether an episode begins, and False."""
    match = _NUMBERED.match(text)
    if match is None:
        return None
    said, *rest = match[2].split("\t")
    reply = _unescaped(rest[0].split("|")[0]) if rest and rest[0] else None
    return _unescaped(said), reply, match[1] == "1", False


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("__PIPE__", "|").strip()


# ---- ChatterBot


def matches_chatterbot(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """`categories:` and `conversations:` at the margin, the latter with lists of lists."""
    first = next((line for line in text.split("\n") if line.strip(" -\r") and line[0] != "#"), "")
    text = text.replace("\r\n", "\n")
    return _YAML_KEY.match(first.rstrip()) is not None and _YAML_TURN.search(text) is not None


def read_chatterbot(source: Source) -> Iterator[Record]:
    """Each list under `conversations` is a dialogue in which user and assistant alternate."""
    yaml = package("yaml", "reading ChatterBot's YAML", "pip install pyyaml")
    texts: list[str] = []
    size = 0
    for line in source.lines():
        if isinstance(line, Failure):
            yield line
            texts.append("")  # keeps the numbers of the lines below
        else:
            texts.append(line[1])
            size += len(line[1])
        if size > MAX_TEXT_BYTES:
            yield Failure(source.name, "bad YAML", f"longer than {MAX_TEXT_BYTES} characters")
            return
    # The basic loader makes strings of all scalars: "yes" stays yes. Nodes know their lines.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        text = "\n".join(texts) + "\n"
        if _is_deep(yaml.parse(text, Loader=loader)):
            yield Failure(source.name, "bad YAML", f"more than {_MAX_DEPTH} levels deep")
            return
        root = yaml.compose(text, Loader=loader)
        found = _members(root).get("conversations")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        yield Failure(source.name, "bad YAML", " ".join(str(error).split())[:300])
        return
    if found is None or not isinstance(found.value, list):
        yield Failure(source.name, "bad YAML", "no list called conversations")
        return
    categories = _categories(_members(root).get("categories"))
    for node in found.value:
        where = f"{source.name}:{node.start_mark.line + source.first_line}"
        yield _conversation(node, where, categories)


def _is_deep(events: Iterator[Any]) -> bool:
    """Whether nodes lie so deep that composing them could end the process: it recurses in C."""
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith("StartEvent") - name.endswith("EndEvent")
        if depth > _MAX_DEPTH:
            return True
    return False


def _members(root: Any) -> Mapping[str, Any]:
    if root is None or root.id != "mapping":
        return {}
    return {str(key.value): value for key, value in root.value}


def _categories(node: Any) -> dict[str, Any]:
    if node is None or node.id != "sequence":
        return {}
    return {"categories": [entry.value for entry in node.value if entry.id == "scalar"]}


def _conversation(node: Any, where: str, meta: dict[str, Any]) -> Record:
    if node.id != "sequence" or not node.value:
        return Failure(where, "bad row", "a conversation is not a list of turns")
    texts = [_turn(turn) for turn in node.value]
    if any(text is None for text in texts):
        return Failure(where, "bad row", "a turn is not a text")
    roles = ("user", "assistant")
    turns = tuple(Message(roles[n % 2], text or "") for n, text in enumerate(texts))  # type: ignore[arg-type]
    return Document(where, messages=turns, meta=meta, shape="chatterbot")


def _turn(node: Any) -> str | None:
    """A turn's text; an unquoted `Note: this` is meant as text and not as a mapping."""
    if node.id == "scalar":
        return str(node.value).strip()
    if node.id == "mapping" and len(node.value) == 1:
        key, value = node.value[0]
        if key.id == value.id == "scalar":
            return f"{key.value}: {value.value}".strip()
    return None
