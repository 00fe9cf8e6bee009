"""Many texts and conversations → one array of ids, the same ids as `template.render` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chatbench.conversation import Message
from chatbench.text.chat_templates import has_template
from chatbench.text.template import ChatML, ChatTemplate
from chatbench.text.tokenizer import Tokenizer


class Item(NamedTuple):
    """Turns, then a plain text when there is one; a text's control text is a system turn."""

    turns: Sequence[Message]
    text: str | None = None


class RenderedArrays(NamedTuple):
    """Document d owns ids[starts[d]:starts[d+1]]; `weights` is 1 where a token is learned."""

    ids: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.uint8]


def render_arrays(tokenizer: Tokenizer, items: Sequence[Item]) -> RenderedArrays:
    """Everything to be learned or read, one document after the other; nothing for an item that
    holds neither turns nor a text. Raises DataError for lone surrogates, and as
    `template.render` does."""
    if not any(item.turns or item.text is None for item in items):
        return _render_texts(tokenizer, [item.text or "" for item in items])
    # A control text in front of a text needs no template.
    needed = any(item.turns and item.text is None for item in items)
    template = tokenizer.template if needed or has_template(tokenizer) else None
    if isinstance(template, ChatML):
        return _render_chatml(tokenizer, template, items)
    return _render_foreign(tokenizer, template, items)


def _render_chatml(tokenizer: Tokenizer, template: ChatML, items: Sequence[Item]) -> RenderedArrays:
    """All contents encoded in one call, between turns that are always the same."""
    pieces = [
        piece
        for item in items
        for piece in (
            *(message.content.strip() for message in item.turns),
            *(() if item.text is None else (item.text,)),
        )
    ]
    encoded, borders = tokenizer.encode_arrays(pieces)
    cuts = borders.tolist()
    heads: dict[str, npt.NDArray[np.uint32]] = {}
    tail = np.array([template.turn_end, *tokenizer.encode("\n")], np.uint32)
    parts: list[npt.NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
    learned: list[int] = []
    starts = np.zeros(len(items) + 1, np.int64)
    size = number = 0
    for place, item in enumerate(items, 1):
        for message in item.turns:
            head = heads.get(message.role)
            if head is None:
                ids = [template.turn_start, *tokenizer.encode(f"{message.role}\n")]
                head = heads[message.role] = np.array(ids, np.uint32)
            begin, end = cuts[number], cuts[number + 1]
            number += 1
            if message.role == "assistant" and message.weight:
                learned += (size + len(head), size + len(head) + end - begin + 1)
            parts += (head, encoded[begin:end], tail)
            size += len(head) + end - begin + len(tail)
        if item.text is not None:
            begin, end = cuts[number], cuts[number + 1]
            number += 1
            learned += (size, size + end - begin + 1)
            parts += (encoded[begin:end], np.array([tokenizer.end_of_text], np.uint32))
            size += end - begin + 1
        starts[place] = size
    return RenderedArrays(np.concatenate(parts), starts, _weights(learned, size))


def _render_foreign(
    tokenizer: Tokenizer, template: ChatTemplate | None, items: Sequence[Item]
) -> RenderedArrays:
    """Conversations one by one; a control text is read as a paragraph in front of its text."""
    chats = [item.turns for item in items if item.text is None and item.turns]
    rendered = iter(template.render_batch(chats) if template else ())
    ids: list[int] = []
    weights: list[int] = []
    starts = [0]
    for item in items:
        if item.text is not None:
            control = "".join(f"{message.content.strip()}\n\n" for message in item.turns)
            read = tokenizer.encode(control) if control else []
            learned = [*tokenizer.encode(item.text), tokenizer.end_of_text]
            ids += read + learned
            weights += [0] * len(read) + [1] * len(learned)
        elif item.turns:
            chat = next(rendered)
            ids += chat.ids
            weights += chat.weights
        starts.append(len(ids))
    return RenderedArrays(
        np.array(ids, np.uint32), np.array(starts, np.int64), np.array(weights, np.uint8)
    )


def _weights(borders: Sequence[int], size: int) -> npt.NDArray[np.uint8]:
    """1 between each pair of borders."""
    steps = np.zeros(size + 1, np.int8)
    steps[np.asarray(borders[0::2], np.int64)] += 1
    # Two learned spans never touch, but one may be empty of text and still hold its end of turn.
    steps[np.asarray(borders[1::2], np.int64)] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8)


def _render_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> RenderedArrays:
    """Plain documents, each with the end of text behind it."""
    encoded, borders = tokenizer.encode_arrays(texts)
    starts = borders + np.arange(len(borders))
    ids = np.empty(len(encoded) + len(texts), np.uint32)
    is_end = np.zeros(len(ids), bool)
    is_end[starts[1:] - 1] = True
    ids[is_end] = tokenizer.end_of_text
    ids[~is_end] = encoded
    return RenderedArrays(ids, starts, np.ones(len(ids), np.uint8))
