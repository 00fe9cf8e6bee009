"""One run of the engine: which rows wait, read and speak, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatbench.engine.graphs import Ahead, plain
from chatbench.engine.prefixes import WORTH, common
from chatbench.engine.rows import Completion, Piece, Request, Row, check_limits, describe
from chatbench.engine.sampling import choose_rows
from chatbench.engine.speculation import MOST, Lookup

if TYPE_CHECKING:
    from chatbench.engine.engine import Engine

# Several short prompts are read at once, as many as are this many chunks.
_CHUNKS = 4


class Shift:
    """One run: rows that wait, then rows of the cache, those that speak before those that are still
    reading their prompts."""

    def __init__(self, engine: Engine, waiting: Iterable[Request], began: float) -> None:
        self._engine = engine
        self._places = engine._places
        self._cache = engine._cache
        # Each with the moment its time began.
        self._waiting = deque((request, began) for request in waiting)
        self._speaking: list[Row] = []
        self._reading: list[Row] = []
        self._ahead: Ahead | None = None
        self._lasting = len(self._waiting) == 1
        self._has_read = False
        self._opening = True

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._speaking or self._reading)

    @property
    def free(self) -> int:
        """How many rows nobody waits for."""
        taken = len(self._waiting) + len(self._speaking) + len(self._reading)
        return self._engine._max_rows - taken

    def add(self, requests: Iterable[Request]) -> None:
        """Requests that came later; their time begins now."""
        for request in requests:
            self._engine.check(request.ids, request.sampling)
            check_limits(self._engine.tokenizer, request, self._engine.context)
            self._waiting.append((request, perf_counter()))

    def cancel(self) -> Iterator[Completion]:
        """End all rows as they are."""
        waiting = [Row(r, self._engine.tokenizer, began) for r, began in self._waiting]
        rows = [*self._speaking, *self._reading, *waiting]
        self._waiting.clear()
        self._speaking, self._reading, self._ahead = [], [], None
        for row in rows:
            row.finish = "cancelled"
            yield row.completion()

    def step(self) -> Iterator[Piece | Completion]:
        """Some rows read or all that can speak say something: turn by turn, so that a long prompt
        does not silence the others. Rows that begin together read first: a step of few rows takes
        almost as long as one of all."""
        self._admit()
        self._opening = self._opening and bool(self._reading)
        if self._reading and (self._opening or not self._speaking or not self._has_read):
            self._has_read = True
            events = self._settle() + self._read()
        else:
            self._has_read = False
            events = self._speak()
        events += self._retire()
        yield from events

    def _admit(self) -> None:
        """Rows that wait take free places, but for those whose beginning is just being read."""
        engine, deferred = self._engine, []
        free = engine._max_rows - len(self._speaking) - len(self._reading)
        looked = 0
        while self._waiting and free and looked < 4 * engine._max_rows:
            request, began = self._waiting.popleft()
            looked += 1
            # The last token is always computed: its logits are asked for.
            ids = request.ids[:-1]
            if self._is_coming(ids):
                deferred.append((request, began))
                continue
            row = Row(request, engine.tokenizer, began)
            place = len(self._speaking) + len(self._reading)
            row.cached = row.read = self._places.begin(place, ids, lasting=self._lasting)
            self._reading.append(row)
            free -= 1
        self._waiting.extendleft(reversed(deferred))

    def _is_coming(self, ids: list[int]) -> bool:
        """Whether a row is just reading a beginning of `ids` that is not at hand yet."""
        coming = [(other.read, common(other.request.ids, ids)) for other in self._reading]
        coming = [(read, shared) for read, shared in coming if max(read, WORTH - 1) < shared]
        if not coming:
            return False
        best = self._places.best(ids)
        return any(shared >= best + WORTH or read == best for read, shared in coming)

    def _read(self) -> list[Piece | Completion]:
        """A chunk of the first prompt, or the rest of several; those read begin to speak."""
        engine, first = self._engine, len(self._speaking)
        parts: list[list[int]] = []
        widest = 0
        for row in self._reading:
            rest = row.request.ids[row.read :]
            if parts and (
                len(rest) > engine._chunk
                or max(widest, len(rest)) * (len(parts) + 1) > _CHUNKS * engine._chunk
                or self._cache.lengths[first + len(parts)] + widest > engine.context
                or max(self._cache.lengths[first : first + len(parts)]) + len(rest) > engine.context
            ):
                break
            parts.append(rest[: engine._chunk])
            widest = max(widest, len(parts[-1]))
            if len(rest) > engine._chunk:
                break
        hidden = engine._forward(parts, first)
        for place, part in enumerate(parts, first):
            self._places.extend(place, part)
            self._reading[place - first].read += len(part)
        # Of the rows read, only one that is alone can have more to read.
        if self._reading[0].read < len(self._reading[0].request.ids):
            return []
        rows, self._reading = self._reading[: len(parts)], self._reading[len(parts) :]
        self._speaking += rows
        last = torch.tensor([len(part) - 1 for part in parts], device=hidden.device)
        scores = engine._scores(hidden[torch.arange(len(parts), device=hidden.device), last])
        return self._choose(rows, scores)

    def _speak(self) -> list[Piece | Completion]:
        """One more token of every row that speaks, and more where guesses come true."""
        engine, rows = self._engine, self._speaking
        if self._goes_ahead():
            return self._speak_ahead()
        began = perf_counter()
        guesses = self._guesses()
        parts = [[row.ids[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        if not any(guesses):
            scores = engine._next([part[0] for part in parts])
            for place, part in enumerate(parts):
                self._places.extend(place, part)
            events = self._choose(rows, scores)
        else:
            hidden = engine._forward(parts, 0)
            scores = engine._scores(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
            events = []
            for place, part in enumerate(parts):
                events += self._verify(place, part, scores[place])
        if len(rows) == 1:
            engine.cost.step(len(parts[0]), perf_counter() - began)
        return events

    def _goes_ahead(self) -> bool:
        """Whether the device writes by itself: it can, and no row needs the host for a token."""
        graphs, rows = self._engine.graphs, self._speaking
        if self._ahead is not None and not self._ahead.pending and not self._ahead.has_room:
            self._ahead = None
        if self._ahead is None and graphs is not None and graphs.usable:
            bare = not any(row.adjustment.needed or self._may_guess(row) for row in rows)
            if bare and all(plain(row.request.sampling) for row in rows):
                self._ahead = graphs.begin(rows)
        return self._ahead is not None

    def _speak_ahead(self) -> list[Piece | Completion]:
        """One more token of every row, while the device computes the next. A row that ends was
        computed once too often, and the others say what they are ahead by."""
        ahead, rows = self._ahead, self._speaking
        assert ahead is not None
        assert ahead.rows == rows
        if not ahead.pending:
            ahead.launch()
        if ahead.has_room and not self._reading and all(self._room(row) > 1 for row in rows):
            ahead.launch()
        events = self._take(ahead)
        return events + self._settle() if any(row.finish for row in rows) else events

    def _take(self, ahead: Ahead) -> list[Piece | Completion]:
        """Say the oldest tokens that the device has chosen."""
        events: list[Piece | Completion] = []
        for place, (row, number) in enumerate(zip(ahead.rows, ahead.read(), strict=True)):
            if row.finish is None:
                self._places.extend(place, row.ids[-1:])
                events += self._say(row, number)
        return events

    def _settle(self) -> list[Piece | Completion]:
        """Say all that the device is ahead by; then rows may come and go."""
        events: list[Piece | Completion] = []
        while self._ahead is not None and self._ahead.pending:
            events += self._take(self._ahead)
        self._ahead = None
        return events

    def _room(self, row: Row) -> int:
        """How many tokens a row may still say."""
        room = self._engine.context - len(row.request.ids)
        return min(row.request.sampling.max_tokens, room) - len(row.ids)

    def _may_guess(self, row: Row) -> bool:
        if row.request.constraint is not None:
            return False
        sampling = row.request.sampling
        alone = len(self._speaking) == 1
        likeliest = sampling.temperature == 0 and self._engine._rounds_finely
        return sampling.speculate == "on" or (sampling.speculate == "auto" and alone and likeliest)

    def _guesses(self) -> list[list[int]]:
        engine = self._engine
        lengths = self._cache.lengths[: len(self._speaking)]
        # Padding reaches as far as the longest guess, in rows without one as well.
        room = min(MOST, engine.context - max(lengths) - 1)
        found = []
        for row in self._speaking:
            sampling = row.request.sampling
            always = sampling.speculate == "on"
            guess: list[int] = []
            if self._may_guess(row):
                if row.lookup is None:
                    row.lookup = Lookup([*row.request.ids, *row.ids])
                most = min(room, sampling.max_tokens - len(row.ids) - 1)
                guess = row.lookup.guess(most, steadfast=always)
                if guess and not always and not engine.cost.pays(len(guess)):
                    guess = []
            found.append(guess)
        return found

    def _verify(self, place: int, part: list[int], scores: Tensor) -> list[Piece | Completion]:
        """Say tokens of one row for as long as they are those guessed: scores (T, V)."""
        row, guess = self._speaking[place], part[1:]
        events: list[Piece | Completion] = []
        right = 0
        for at in range(len(part)):
            events += self._choose([row], scores[at : at + 1])
            if row.finish or at == len(guess) or row.ids[-1] != guess[at]:
                break
            right += 1
        # What was read and is no part of the reply lies beyond the row's length.
        self._places.extend(place, part[: 1 + right])
        if guess and row.lookup is not None:
            row.lookup.judge(len(guess), right)
            self._engine.cost.judge(len(guess), right)
        return events

    def _choose(self, rows: list[Row], scores: Tensor) -> list[Piece | Completion]:
        """The next token of each row, from logits (R, V)."""
        engine = self._engine
        adjusted = scores
        if any(row.adjustment.needed for row in rows):
            adjusted = scores.clone()
            for row, own in zip(rows, adjusted, strict=True):
                if row.adjustment.needed:
                    row.adjustment.apply(own, self._room(row))
        chosen = choose_rows(
            adjusted, [row.request.sampling for row in rows], [row.generator for row in rows]
        )
        events: list[Piece | Completion] = []
        for row, own, number in zip(rows, scores, chosen, strict=True):
            before = len(row.ids)
            events += self._say(row, number)
            if row.logprobs is not None and len(row.ids) > before:
                top = row.request.sampling.logprobs or 0
                row.logprobs += describe(engine.tokenizer, own[None], [number], top)
        return events

    def _say(self, row: Row, number: int) -> list[Piece]:
        """The row's next token; what of its text may be shown."""
        before = len(row.ids)
        text = row.push(number, self._engine.context - len(row.request.ids))
        if row.lookup is not None and len(row.ids) > before:
            row.lookup.extend([number])
        return [Piece(row.request.key, text)] if text else []

    def _retire(self) -> list[Piece | Completion]:
        """Report finished rows and close the gaps they leave in the cache."""
        events: list[Piece | Completion] = []
        for place in reversed(range(len(self._speaking))):
            row = self._speaking[place]
            if row.finish is None:
                continue
            events.append(row.completion())
            last = len(self._speaking) - 1
            self._speaking[place] = self._speaking[last]
            self._speaking.pop()
            self._places.move(last, place)
            if self._reading:
                # The freed place lies before the rows that read: the last of them takes it.
                self._places.move(last + len(self._reading), last)
                self._reading.insert(0, self._reading.pop())
        return events
