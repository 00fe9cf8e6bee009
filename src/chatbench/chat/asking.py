"""What is asked without a terminal: a text or a line of JSON becomes requests, and a completion
becomes the object that is told."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from chatbench import console
from chatbench.chat.forms import FORM_KEYS, Form, Forms, Weighed, form_of
from chatbench.chat.prompting import opening_text
from chatbench.conversation import Message, parse_messages
from chatbench.engine.constraints import Choices
from chatbench.engine.engine import Completion, Engine, Request
from chatbench.engine.rows import check_limits
from chatbench.errors import UsageError, did_you_mean
from chatbench.settings import MOST_SAMPLES, SamplingSettings, replace
from chatbench.text.fitting import fit, oldest, room_for
from chatbench.text.tags import Known, unlearned
from chatbench.text.tokenizer import Tokenizer

LONGEST_LINE = 8 << 20
# A seed that JSON readers with 53-bit numbers keep as it is.
_SEEDS = 1 << 48
_LEAST_LOGPROB = -9999.0
# Notices about tags that a model has not learned.
_MOST_TOLD = 20
_ANY = Form()
_KNOWN = frozenset(("id", "prompt", "messages", "system", "tags", "n")) | FORM_KEYS
_SAMPLING = frozenset(SamplingSettings.__struct_fields__)


class Asked(NamedTuple):
    """One prompt: a request for each sample of its reply, or why there is none; `dropped` of its
    messages, the oldest, were too many for the context."""

    id: object
    requests: list[Request]
    error: str = ""
    dropped: int = 0


class Line(NamedTuple):
    """A line of input without its end; `data` is None when it is longer than LONGEST_LINE."""

    number: int
    data: bytes | None


def identity(id: object) -> bytes:
    """16 bytes that two ids share when they are the same JSON value."""
    return hashlib.blake2b(msgspec.json.encode(id, order="deterministic"), digest_size=16).digest()


def sample_seeds(seed: int | None, count: int) -> list[int]:
    """The seed of each sample: the given one (or one that is drawn), then others derived from it,
    so that neighbouring seeds do not share their samples."""
    first = random.SystemRandom().randrange(_SEEDS) if seed is None else seed
    return [first, *(_derived(first, index) for index in range(1, count))]


def _derived(seed: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _SEEDS


def json_line(value: object) -> str:
    """JSON on one line, in which what a terminal would obey is escaped; it means the same."""
    text = msgspec.json.encode(value).decode()
    if console.visible(text) == text:
        return text
    return "".join(c if console.visible(c) == c else f"\\u{ord(c):04x}" for c in text)


class Asker:
    """Makes requests of texts and lines, with what the command line said about all of them."""

    def __init__(
        self, engine: Engine, sampling: SamplingSettings, *, system: str | None = None,
        raw: bool = False, samples: int = 1, model: str = "", form: Form = _ANY,
        tags: Mapping[str, str] | None = None, known_tags: Known | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        self._tokenizer = engine.tokenizer
        self._sampling = sampling
        self._system = system
        self._tags = dict(tags or {})
        self._known_tags = known_tags or {}
        self._told: set[str] = set()
        self._raw = raw
        self._samples = samples
        self._model = model
        self._form = form
        self._forms = Forms(engine.tokenizer, raw=raw)
        # Whoever asks for what cannot be is told at once.
        self._forms.constraint(form)

    def text(self, text: str) -> Asked:
        """A text to answer, or to continue. Raises UsageError, as when it is too long."""
        return self._asked(None, {"prompt": text})

    def line(self, line: Line) -> Asked:
        """One JSON object with prompt or messages, an id, and its own sampling."""
        id: object = line.number
        try:
            row = _read_row(line)
            if row.get("id") is not None:
                identity(row["id"])
                id = row["id"]
            return self._asked(id, row)
        except (ValueError, RecursionError, UsageError) as error:
            return Asked(id, [], f"line {line.number}: {error}")

    def _asked(self, id: object, row: dict[str, Any]) -> Asked:
        own = {key: value for key, value in row.items() if key not in _KNOWN}
        for name in own.keys() - _SAMPLING:
            hint = did_you_mean(name, sorted(_KNOWN | _SAMPLING))
            raise UsageError(f"there is no {name}", hint=hint)
        samples = row.get("n", self._samples)
        if type(samples) is not int or not 1 <= samples <= MOST_SAMPLES:
            raise UsageError(f"n is not a number from 1 to {MOST_SAMPLES}")
        sampling = replace(self._sampling, **own)
        form = form_of(row)
        constraint = self._forms.constraint(self._form if form is None else form)
        if isinstance(constraint, Choices):
            constraint = Weighed(constraint.choices, self._tokenizer)
        ids, dropped = self._prompt(row, sampling.max_tokens)
        request = Request(ids, sampling, goes_on=self._goes_on(row), constraint=constraint)
        self.engine.check(ids, sampling)
        check_limits(self._tokenizer, request, self.engine.context)
        seeds = sample_seeds(sampling.seed, samples)
        return Asked(id, [
            request._replace(sampling=msgspec.structs.replace(sampling, seed=seed))
            for seed in seeds
        ], dropped=dropped)  # fmt: skip

    def _goes_on(self, row: dict[str, Any]) -> bool:
        return self._raw and "messages" not in row

    def _prompt(self, row: dict[str, Any], max_tokens: int) -> tuple[list[int], int]:
        """Ids to continue, and how many messages were left out for them to fit."""
        if "messages" in row:
            if "prompt" in row:
                raise UsageError("there are both prompt and messages", hint="leave one out")
            messages = list(parse_messages(row["messages"]))
        elif not isinstance(row.get("prompt"), str):
            raise UsageError("there is neither prompt nor messages")
        elif self._raw:
            if row.get("system") or row.get("tags"):
                raise UsageError("a text that --raw continues has no system prompt and no tags")
            return raw_prompt(self._tokenizer, row["prompt"]), 0
        else:
            messages = [Message("user", row["prompt"])]
        system = row.get("system", self._system)
        if not isinstance(system, str | None):
            raise UsageError("system is not a text")
        given = messages.pop(0) if messages[0].role == "system" else None
        tags = self._tags_of(row.get("tags"))
        text = opening_text(given.content if given else system, tags, self._known_tags)
        opening = [Message("system", text or "")] if text or given else []
        room = room_for(self.engine.context, max_tokens)
        ids, forgotten = fit(self._tokenizer, opening, messages, room)
        return ids, oldest(messages, forgotten)

    def _tags_of(self, own: object) -> dict[str, object]:
        """The command line's tags and a line's own, which count more; what the model has never
        seen is told once. Raises UsageError."""
        if own is not None and not isinstance(own, dict):
            raise UsageError("tags is not an object of plain values")
        tags: dict[str, object] = {**self._tags, **(own or {})}
        for line in unlearned(tags, self._known_tags):
            if line not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(line)
                console.notice(line)
        return tags

    def told(self, request: Request, completion: Completion) -> dict[str, Any]:
        """What --json tells of one reply."""
        count, seconds = len(completion.ids), completion.seconds
        row: dict[str, Any] = {
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "usage": {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": count,
                "cached_tokens": completion.cached_tokens,
            },
            "timings": {
                "first_seconds": round(completion.first_seconds, 6),
                "seconds": round(seconds, 6),
                "tokens_per_second": round(count / seconds, 3) if seconds > 0 else 0.0,
            },
            "seed": request.sampling.seed,
            "model": self._model,
        }
        if isinstance(request.constraint, Weighed):
            row["choices"] = request.constraint.shares()
        if completion.logprobs is not None:
            row["logprobs"] = self._logprobs(completion)
        return row

    def _logprobs(self, completion: Completion) -> dict[str, Any]:
        """OpenAI's chat shape."""
        entries = self._tokenizer.token_bytes

        def alternative(id: int, text: str, logprob: float) -> dict[str, Any]:
            data = entries[id] if id < len(entries) else b""
            return {"token": text, "bytes": list(data), "logprob": max(logprob, _LEAST_LOGPROB)}

        return {
            "content": [
                {
                    "token": token.text,
                    "bytes": list(token.bytes),
                    "logprob": max(token.logprob, _LEAST_LOGPROB),
                    "top_logprobs": [alternative(*other) for other in token.top],
                }
                for token in completion.logprobs or ()
            ]
        }


def raw_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """A document's beginning, as in pretraining."""
    return [*tokenizer.text_prefix, *tokenizer.encode(text)]


def _read_row(line: Line) -> dict[str, Any]:
    """Raises ValueError, RecursionError, UsageError."""
    if line.data is None:
        raise UsageError(f"longer than {LONGEST_LINE >> 20} MB", hint="cut it into several")
    if line.data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError("this is UTF-16", hint="write the file as UTF-8")
    data = line.data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise UsageError("there is a NUL byte in it", hint="write \\u0000, or the file as UTF-8")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"byte {error.start + 1} is not UTF-8") from error
    row = msgspec.json.decode(data)
    if not isinstance(row, dict):
        raise UsageError("this is not a JSON object")
    return row
