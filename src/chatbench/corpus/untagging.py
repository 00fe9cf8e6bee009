"""What documents are without their tags, kept beside their ids so that training can leave tags out.

Without a tag a document is not simply shorter: its system turn may go, another family's template
may write a prompt of its own there, and text merges otherwise at the border. So the document is
rendered with all tags and with fewer, and what differs between the two is kept, a splice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus.document import Document
from chatbench.text.rendering import RenderedArrays
from chatbench.text.tags import fewer
from chatbench.text.tokenizer import Tokenizer

Ids = npt.NDArray[np.unsignedinteger[Any]]
Weights = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Splice(NamedTuple):
    """A document with fewer tags: `ids` and `weights`, both (n,), in place of begin..end."""

    begin: int
    end: int
    ids: Ids
    weights: Weights

    @property
    def growth(self) -> int:
        """How many tokens longer the document gets; nearly always it gets shorter."""
        return len(self.ids) - (self.end - self.begin)

    def applied(
        self, ids: Ids, weights: npt.NDArray[Any], start: int = 0
    ) -> tuple[Ids, npt.NDArray[Any]]:
        """Ids and weights of a document's tokens from `start` on, which begin..end are among."""
        before, after = self.begin - start, self.end - start
        return (
            np.concatenate([ids[:before], self.ids, ids[after:]]),
            np.concatenate([weights[:before], self.weights, weights[after:]]),
        )


class Splices(NamedTuple):
    """Of some documents: document d owns first[d]:first[d+1], the one without any tag first, then
    those without one of several. Splice v takes the place of tokens spans[v] (V, 2) of its document
    and is ids[starts[v]:starts[v+1]] of `rendered`."""

    first: Ints
    spans: Ints
    rendered: RenderedArrays


def with_fewer_tags(document: Document, tokenizer: Tokenizer) -> list[Document]:
    """Without all its tags, then without each one of several; none where there are no tags, or
    where the chat template does not take the turns that are left."""
    found = [
        msgspec.structs.replace(document, control=control) for control in fewer(document.control)
    ]
    if document.messages is None or not found:
        return found
    refused = any(tokenizer.template.refusal(d.turns() or ()) is not None for d in found)
    return [] if refused else found


def splices(whole: RenderedArrays, counts: Sequence[int], others: RenderedArrays) -> Splices:
    """What of each document's ids differs in its variants, of which there are `counts[d]`."""
    first = np.cumsum([0, *counts])
    spans = np.zeros((int(first[-1]), 2), np.int64)
    ids: list[npt.NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
    weights: list[Weights] = [np.zeros(0, np.uint8)]
    starts = np.zeros(len(spans) + 1, np.int64)
    for document in np.flatnonzero(np.diff(first)).tolist():
        full = _one(whole, document)
        for number in range(int(first[document]), int(first[document + 1])):
            other = _one(others, number)
            begin, end = _differing(full, other)
            kept = slice(begin, other.shape[1] - (full.shape[1] - end))
            spans[number] = begin, end
            ids.append(other[0, kept].astype(np.uint32))
            weights.append(other[1, kept].astype(np.uint8))
            starts[number + 1] = starts[number] + len(ids[-1])
    return Splices(
        first, spans, RenderedArrays(np.concatenate(ids), starts, np.concatenate(weights))
    )


def _one(rendered: RenderedArrays, number: int) -> Ints:
    """Ids and weights of one document, (2, n)."""
    place = slice(*rendered.starts[number : number + 2].tolist())
    return np.stack([rendered.ids[place], rendered.weights[place]]).astype(np.int64)


def _differing(full: Ints, other: Ints) -> tuple[int, int]:
    """The shortest begin..end of `full` that something else must take the place of."""
    most = min(full.shape[1], other.shape[1])
    same = (full[:, :most] == other[:, :most]).all(axis=0)
    begin = most if same.all() else int(same.argmin())
    rest = most - begin
    backward = (full[:, ::-1][:, :rest] == other[:, ::-1][:, :rest]).all(axis=0)
    common = rest if backward.all() else int(backward.argmin())
    return begin, full.shape[1] - common


class SpliceColumn:
    """Collects the splices of a shard's documents; as arrays `untagged_...`."""

    def __init__(self) -> None:
        self._counts: list[Ints] = []
        self._parts: list[Splices] = []
        self._documents = 0

    def add(self, made: Splices, before: int) -> None:
        """Those of the next documents, of which `before` came earlier in the shard."""
        self.pad(before)
        self._counts.append(np.diff(made.first))
        self._parts.append(made)
        self._documents += len(made.first) - 1

    def pad(self, documents: int) -> None:
        """Documents without tags, up to so many in all."""
        self._counts.append(np.zeros(documents - self._documents, np.int64))
        self._documents = documents

    def arrays(
        self, documents: int, number_type: type[np.unsignedinteger[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Nothing where no document has tags."""
        if not any(len(part.spans) for part in self._parts):
            return {}
        self.pad(documents)
        lengths = [np.diff(part.rendered.starts) for part in self._parts]
        return {
            "untagged_first": np.cumsum(np.concatenate([[0], *self._counts])).astype(np.int64),
            "untagged_spans": np.concatenate([part.spans.ravel() for part in self._parts]),
            "untagged_starts": np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64),
            "untagged_ids": np.concatenate([p.rendered.ids for p in self._parts]).astype(
                number_type
            ),
            "untagged_weights": np.concatenate([part.rendered.weights for part in self._parts]),
        }


class StoredSplices:
    """The splices of a shard's documents, by number."""

    def __init__(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.there = "untagged_first" in arrays
        self._arrays = arrays

    def of(self, document: int) -> tuple[Splice, ...]:
        """The one without any tag first; none for a document without tags."""
        if not self.there:
            return ()
        a = self._arrays
        begin, end = a["untagged_first"][document : document + 2].tolist()
        found = []
        for number in range(begin, end):
            place = slice(*a["untagged_starts"][number : number + 2].tolist())
            start, stop = a["untagged_spans"][2 * number : 2 * number + 2].tolist()
            ids, weights = a["untagged_ids"][place], a["untagged_weights"][place]
            found.append(Splice(start, stop, ids, weights))
        return tuple(found)
