"""Text with control tokens in some of its parts, and twins of a tokenizer that keep them out.

A twin gives every id the meaning it has, but knows the control tokens by no name, or by names
that nobody can write: random ones, made when the twin is.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.text.splitting import refuse_surrogates

Part = tuple[str, bool]
Span = tuple[int, int]


class Marked(NamedTuple):
    """Ids, and for each the characters (start, end) of the whole text that it stands for."""

    ids: list[int]
    offsets: list[Span]


def parse_backend(backend: Backend) -> dict[str, Any]:
    """tokenizer.json, without what makes an encoding longer, shorter or random."""
    content: dict[str, Any] = json.loads(backend.to_str())
    content |= {"truncation": None, "padding": None}
    if content["model"].get("dropout"):
        content["model"]["dropout"] = None
    return content


def text_only(
    content: Mapping[str, Any], added: Sequence[dict[str, Any]], control_ids: frozenset[int]
) -> Backend:
    """A twin that knows no control token, whatever the text.

    `content` is a parsed tokenizer.json, `added` its added tokens. Where text could spell the
    vocabulary entry of a control token, that entry gets a name of its own.
    """
    kept = [token for token in added if token["id"] not in control_ids]
    names = {t["content"]: _unwritable() for t in added if t["id"] in control_ids}
    model = content["model"]
    if kept or _can_spell(model, names):
        model = _renamed(model, names, kept)
    return _backend(content, model, kept)


class Marker:
    """Encodes texts of which some parts are markup: control tokens are recognised there alone."""

    def __init__(
        self,
        content: Mapping[str, Any],
        added: Sequence[dict[str, Any]],
        control_ids: frozenset[int],
    ) -> None:
        self._content = content
        self._added = added
        self._controls = control_ids
        self._names = {token["id"]: token["content"] for token in added}
        # Offsets would be trimmed by a post-processor.
        self._whole = _backend(content, content["model"], list(added))
        # As the backend looks for them: first these in the text as it is, then those that are
        # compared after normalisation; at each place the longest.
        self._patterns = [
            _any_of(token["content"] for token in added if token["normalized"] is normalized)
            for normalized in (False, True)
        ]

    def encode(self, texts: Sequence[Sequence[Part]]) -> list[Marked]:
        """Each text, given as parts of (text, is_markup), as one string.

        The ids are those the backend gives for the joined string as long as no control token is
        recognised outside the markup; otherwise what looks like one there, or reaches out of the
        markup, is encoded as text. Raises DataError for lone surrogates, IntegrityError for a
        normaliser that makes control tokens of other text.
        """
        joined = ["".join(part for part, _ in parts) for parts in texts]
        for text in joined:
            refuse_surrogates(text)
        found = self._whole.encode_batch(joined, add_special_tokens=False)
        marked = []
        for parts, text, encoding in zip(texts, joined, found, strict=True):
            ids, offsets = encoding.ids, encoding.offsets
            runs = _runs(parts)
            if self._kept_to_markup(text, runs, ids, offsets):
                marked.append(Marked(ids, offsets))
            else:
                marked.append(self._encode_apart(text, runs))
        return marked

    def _kept_to_markup(
        self, text: str, runs: Sequence[tuple[int, int, bool]], ids: list[int], offsets: list[Span]
    ) -> bool:
        """Whether every control token among `ids` lies inside one stretch of markup."""
        starts = [start for start, _, _ in runs]
        for at in [at for at, number in enumerate(ids) if number in self._controls]:
            number, (start, end) = ids[at], offsets[at]
            # A token may take the white space beside it along.
            name = self._names[number]
            place = text.find(name, start, end)
            if place >= 0:
                start, end = place, place + len(name)
            _, last, markup = runs[bisect_right(starts, start) - 1]
            if not markup or end > last:
                return False
        return True

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        """For each control token a name of its own in the twin."""
        return {
            token["content"]: _unwritable(token["content"]) for token in self._added
            if token["id"] in self._controls
        }  # fmt: skip

    @cached_property
    def _twin(self) -> Backend:
        added = [t | {"content": self._stand_ins.get(t["content"], t["content"])}
                 for t in self._added]  # fmt: skip
        return _backend(
            self._content, _renamed(self._content["model"], self._stand_ins, added), added
        )

    def _encode_apart(self, text: str, runs: Sequence[tuple[int, int, bool]]) -> Marked:
        """With the control tokens of the markup under other names, so that no others are known."""
        places = [
            place
            for start, end, markup in runs
            if markup
            for place in self._tokens_in(text, start, end, 0)
        ]
        while True:
            marked = self._with_stand_ins(text, places)
            taken = [
                span
                for number, span in zip(marked.ids, marked.offsets, strict=True)
                if number in self._controls
            ]
            # Flags and normalisation can keep the backend from seeing a token: then it is text.
            seen = [(a, b) for a, b in places if any(c <= a and b <= d for c, d in taken)]
            if len(taken) == len(places) == len(seen):
                return marked
            if seen == places:
                raise IntegrityError("the tokenizer makes up control tokens as it normalises")
            places = seen

    def _with_stand_ins(self, text: str, places: Sequence[Span]) -> Marked:
        """Encode with the tokens at these places under the names of the twin."""
        pieces: list[str] = []
        cuts = [(0, 0, 0, 0)]  # start and length of a token in the twin's text and in ours
        done = size = 0
        for start, end in places:
            stand_in = self._stand_ins[text[start:end]]
            size += start - done
            pieces += (text[done:start], stand_in)
            cuts.append((size, len(stand_in), start, end - start))
            done, size = end, size + len(stand_in)
        pieces.append(text[done:])
        found = self._twin.encode("".join(pieces), add_special_tokens=False)
        starts = [cut[0] for cut in cuts]

        def ours(place: int) -> int:
            theirs, length, start, width = cuts[bisect_right(starts, place) - 1]
            if place == theirs:
                return start
            return start + width + max(0, place - theirs - length)

        return Marked(list(found.ids), [(ours(a), ours(b)) for a, b in found.offsets])

    def _tokens_in(self, text: str, start: int, end: int, stage: int) -> list[Span]:
        """Where control tokens stand in this stretch of markup."""
        if stage == len(self._patterns):
            return []
        spans: list[Span] = []
        pattern, done = self._patterns[stage], start
        for match in pattern.finditer(text, start, end) if pattern else ():
            spans += self._tokens_in(text, done, match.start(), stage + 1)
            if match[0] in self._stand_ins:
                spans.append(match.span())
            done = match.end()
        return spans + self._tokens_in(text, done, end, stage + 1)


def _runs(parts: Sequence[Part]) -> list[tuple[int, int, bool]]:
    """(start, end, is_markup) of the stretches of one kind, in characters of the whole."""
    runs, place = [(0, 0, False)], 0
    for markup, group in groupby((part for part in parts if part[0]), key=lambda part: part[1]):
        end = place + sum(len(text) for text, _ in group)
        runs.append((place, end, markup))
        place = end
    return runs


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _unwritable(like: str = "") -> str:
    """A name that no text contains, with the first and last character of another.

    Its neighbours take it for a word, or not, as they did the other; lower-case letters and digits
    pass through every normaliser.
    """
    return f"{like[:1]}{secrets.token_hex(16)}{like[-1:]}"


def _can_spell(model: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Whether `model` can come from text to an entry with one of these names."""
    if model["type"] != "BPE":
        return True
    if model.get("ignore_merges"):
        return not model["vocab"].keys().isdisjoint(names)
    # One character is an entry before any merge.
    reached = {name for name in names if len(name) == 1} & model["vocab"].keys()
    return bool(reached) or any(a + b in names for a, b in map(_pair, model["merges"]))


def _pair(merge: str | list[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _renamed(
    model: Mapping[str, Any], names: Mapping[str, str], kept: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """`model` with other names for some entries, none of which a merge makes, and an entry for
    each of the added tokens `kept`, so that they get their ids."""
    if model["type"] == "BPE":
        vocab = {names.get(entry, entry): number for entry, number in model["vocab"].items()}
        vocab |= {token["content"]: token["id"] for token in kept}
        merges = [
            merge
            for merge in model["merges"]
            if names.keys().isdisjoint((*_pair(merge), "".join(_pair(merge))))
        ]
        unknown = model.get("unk_token")
        unknown = unknown and names.get(unknown, unknown)
        return {**model, "vocab": vocab, "merges": merges, "unk_token": unknown}
    entries = [[names.get(entry, entry), score] for entry, score in model["vocab"]]
    lowest = min((score for _, score in entries), default=0.0)
    size = max((token["id"] + 1 for token in kept), default=0)
    entries += [[_unwritable(), lowest] for _ in range(len(entries), size)]
    for token in kept:
        entries[token["id"]][0] = token["content"]
    return {**model, "vocab": entries}


def _backend(
    content: Mapping[str, Any], model: Mapping[str, Any], added: Sequence[dict[str, Any]]
) -> Backend:
    whole = {**content, "model": model, "added_tokens": list(added), "post_processor": None}
    return Backend.from_str(json.dumps(whole))
