"""Replies that are JSON of a given schema: tokens are allowed by the bytes they stand for.

The bytes of all tokens run through the automaton together, one place after the other; what that
gives for a state is kept. Legend: V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from chatbench.engine.constraints import Mask
from chatbench.engine.grammar import DEAD, LONGEST, WHOLE, Automaton, State
from chatbench.engine.json_schema import JsonRules
from chatbench.errors import UsageError
from chatbench.text.tokenizer import Tokenizer

_IMPOSSIBLE = 32_767
_KEPT_BYTES = 1 << 26
_MOST_STATES = 20_000
_MOST_ALIASES = 50_000


class Spellings:
    """What the tokens of a vocabulary stand for in the middle of a text; control tokens for
    nothing. One serves all constraints."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        entries = tokenizer.token_bytes
        hidden = tokenizer.control_ids | tokenizer.stops
        ids = [n for n, data in enumerate(entries) if data and n not in hidden]
        self.size = tokenizer.vocab_size
        self.stops = sorted(tokenizer.stops)
        # An encoder that puts a space before a text may have taught the model to write one.
        self.padded = bool(tokenizer.spelling.strip or tokenizer.spelling.first)
        self.ids = np.array(ids, np.int64)
        self.entries = entries
        self.lengths = np.array([len(entries[n]) for n in ids], np.int64)
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.flat = np.frombuffer(b"".join(entries[n] for n in ids), np.uint8)
        self.longest = int(self.lengths.max(initial=0))
        self._known = {entries[n] for n in ids}

    def count(self, data: bytes) -> int:
        """Tokens that spell `data`, always the longest that fits; what is left of them after some
        is spelled by the rest. _IMPOSSIBLE when there is no token to go on with."""
        count = at = 0
        while at < len(data):
            for size in range(min(self.longest, len(data) - at), 0, -1):
                if data[at : at + size] in self._known:
                    at += size
                    break
            else:
                return _IMPOSSIBLE
            count += 1
        return min(count, _IMPOSSIBLE - 1)


class _Kept:
    """For each id the tokens that close the reply after it (V,), _IMPOSSIBLE where it may not
    follow; the worst of them, and all that may not follow as a mask."""

    def __init__(self, needs: npt.NDArray[np.int16], whole: bool) -> None:
        self.needs = needs
        possible = needs[needs < _IMPOSSIBLE]
        self.worst = int(possible.max(initial=-1))
        self.forbidden = torch.from_numpy(needs == _IMPOSSIBLE)
        self.whole = whole


class JsonReply:
    """A reply that is JSON which `schema` (a parsed JSON Schema, see json_schema.py) accepts.

    Any spelling by tokens is allowed, for JSON has no canonical text either. When few tokens are
    left, only what can still be closed is. Raises UsageError for schemas beyond the subset.
    """

    def __init__(self, schema: object, spellings: Spellings) -> None:
        self._spellings = spellings
        rules = JsonRules(schema, padded=spellings.padded)
        self._automaton = Automaton(rules, rules.start)
        self._needs: dict[State, int] = {}
        self._kept: dict[State, _Kept] = {}
        self._aliases: dict[State, State] = {}
        self._most = max(16, _KEPT_BYTES // (3 * spellings.size))
        self.room = self._need(self.begin())
        if self.room == _IMPOSSIBLE:
            raise UsageError(
                "no reply of this form can be written with the model's tokens, or it is longer "
                f"than {LONGEST:,} bytes",
                hint="ask for less, such as lower minItems",
            )

    def begin(self) -> State:
        return self._automaton.start

    def after(self, state: State, number: int) -> State:
        found = self._automaton.after(state, self._spellings.entries[number])
        assert found is not None, f"token {number} was not allowed"
        return found

    def ended(self, state: State) -> bool:
        return state == WHOLE

    def mask(self, state: State, left: int) -> Mask:
        kept = self._look(state)
        if kept.worst < left:
            return Mask(kept.forbidden, None)
        far = kept.needs >= left
        forbidden = torch.from_numpy(far)
        if kept.whole:
            forbidden[self._spellings.stops] = False
        return Mask(forbidden, torch.from_numpy(far & (kept.needs < _IMPOSSIBLE)))

    def _look(self, state: State) -> _Kept:
        """What may follow, worked out once for states that no token tells apart."""
        same = self._aliases.get(state)
        if same is None:
            same = frozenset(tuple(map(self._clipped, stack)) for stack in state)
            if len(self._aliases) >= _MOST_ALIASES:
                self._aliases.clear()
            self._aliases[state] = same
        kept = self._kept.pop(same, None) or self._work_out(same)
        self._kept[same] = kept
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return kept

    def _clipped(self, symbol: object) -> object:
        """Characters that may follow in a string, beyond those of any token, are like others."""
        longest = self._spellings.longest
        match symbol:
            case ("chars", int(left)) if left > longest:
                return ("chars", longest)
        return symbol

    def _work_out(self, state: State) -> _Kept:
        spellings, automaton = self._spellings, self._automaton
        if len(automaton.states) > _MOST_STATES:
            automaton.clear()
        active = np.arange(len(spellings.ids))
        reached = np.full(len(active), automaton.number(state), np.int64)
        needs = np.full(spellings.size, _IMPOSSIBLE, np.int16)
        place = 0
        while len(active):
            table = automaton.rows(np.flatnonzero(np.bincount(reached)).tolist())
            reached = table[reached, spellings.flat[spellings.begins[active] + place]]
            alive = reached != DEAD
            active, reached = active[alive], reached[alive]
            place += 1
            ended = spellings.lengths[active] == place
            found = reached[ended]
            if len(found):
                costs = np.zeros(int(found.max()) + 1, np.int16)
                for number in np.flatnonzero(np.bincount(found)).tolist():
                    costs[number] = self._need(automaton.states[number])
                needs[spellings.ids[active[ended]]] = costs[found]
            active, reached = active[~ended], reached[~ended]
        kept = _Kept(needs, () in state)
        if kept.whole:
            kept.forbidden[spellings.stops] = False
        return kept

    def _need(self, state: State) -> int:
        """Tokens after which the reply can be whole."""
        found = self._needs.get(state)
        if found is None:
            if len(self._needs) >= _MOST_ALIASES:
                self._needs.clear()
            closing = self._automaton.closing(state)
            found = _IMPOSSIBLE if closing is None else self._spellings.count(closing)
            self._needs[state] = found
        return found


def json_reply(schema: object, tokenizer: Tokenizer) -> JsonReply:
    """A constraint for one tokenizer alone."""
    return JsonReply(schema, Spellings(tokenizer))
