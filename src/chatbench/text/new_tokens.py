"""Control tokens that a chat template writes and the tokenizer of a base lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from chatbench.errors import UsageError
from chatbench.text.chat_templates import TOKENS, template_text
from chatbench.text.foreign_template import Foreign
from chatbench.text.special_tokens import KNOWN_MARKS
from chatbench.text.tokenizer import Tokenizer

_TOKEN = re.compile(
    "|".join([r"<[|｜][^\s<>|｜]{1,64}[|｜]>", *map(re.escape, sorted(KNOWN_MARKS))])
)
# Together they show what a template writes around every role, first, in between and last.
_ROLES = (("user", "assistant"), ("system", "user", "assistant", "user", "assistant"))


class Needed(NamedTuple):
    """Control tokens that a template writes, in the order they are met, and the one that ends a
    reply; none where it does without, or where what ends a reply is no token."""

    tokens: tuple[str, ...] = ()
    end: str = ""


def with_new_tokens(tokenizer: Tokenizer) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer with the control tokens that the template a person named writes and it lacks,
    and the ids of those that had none; the tokenizer itself where nothing is lacking.

    Every other id, and the ids of every text, stay as they are; new ids follow the highest one.
    Raises what reading the template raises.
    """
    tokens, end = _needed(tokenizer)
    names = {number: name for name, number in tokenizer.controls.items()}
    ends = not end or end in {names[number] for number in tokenizer.stops}
    missing = [token for token in tokens if token not in tokenizer.controls]
    if not missing and ends:
        return tokenizer, ()
    backend, fresh = _added(tokenizer, missing)
    files = tokenizer.files
    made = Tokenizer(backend, files)
    if end and made.controls[end] not in made.stops:
        made = Tokenizer(backend, replace(files, settings={**files.settings, "eot_token": end}))
    return made, fresh


def _needed(tokenizer: Tokenizer) -> Needed:
    given = tokenizer.files.given_template
    if given is None:
        return Needed()
    if given in TOKENS:
        tokens = TOKENS[given]
        return Needed(tokens, tokens[-1]) if tokens else Needed()
    return _written(tokenizer, template_text(given, tokenizer))


def _written(tokenizer: Tokenizer, source: str) -> Needed:
    """Those that stand in the Jinja text itself and in what it writes, and the one that ends a
    reply, which may be named by the tokenizer's settings alone.

    A template whose replies end in a token that the tokenizer has was made for such a tokenizer:
    other marks in it, like Zephyr's roles, are ordinary text there.
    """
    layouts = list(_layouts(Foreign(tokenizer, source, "jinja")))
    stops = {name for name, number in tokenizer.controls.items() if number in tokenizer.stops}
    after = [tail for _, tail in layouts]
    end = next((found[0] for found in map(_TOKEN.search, after) if found), "")
    if not end or any(stop in tail for tail in after for stop in stops):
        return Needed()
    met = dict.fromkeys(token for markup, _ in layouts for token in _TOKEN.findall(markup))
    return Needed(tuple(token for token in met if token in source or token == end), end)


def _layouts(template: Foreign) -> Iterator[tuple[str, str]]:
    """All markup of a conversation, and what of it stands behind its last reply."""
    for roles in _ROLES:
        try:
            pieces = template.layout(roles, opened=False).pieces
        except UsageError:
            continue  # it knows no system turn, for one
        last = max(place for place, piece in enumerate(pieces) if piece == len(roles) - 1)
        texts = ["" if isinstance(piece, int) else piece for piece in pieces]
        yield "".join(texts), "".join(texts[last:])


def _added(tokenizer: Tokenizer, missing: list[str]) -> tuple[Backend, tuple[int, ...]]:
    """The tokenizer with these as control tokens, and the ids of those that were no entries."""
    content = json.loads(tokenizer.to_bytes())
    backend = Backend.from_str(json.dumps(content))
    known = backend.get_vocab(with_added_tokens=True)
    fresh = [token for token in missing if token not in known]
    wanted = {token: tokenizer.vocab_size + place for place, token in enumerate(fresh)}
    entries = content["model"]["vocab"]
    if len(known) != tokenizer.vocab_size and fresh and isinstance(entries, dict):
        # Numbered by the count of entries, they would take ids that others have.
        entries |= wanted
        backend = Backend.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
    assert all(backend.token_to_id(token) == number for token, number in wanted.items())
    return backend, tuple(wanted.values())
