"""Logits of rows → the next ids. Exact: kept tokens are drawn from their renormalised mass, with
one uniform number of the row's own generator, so a row draws the same alone and in a batch.

The vocabulary is never sorted: top_k takes the k largest, top_p as many of the largest as hold its
mass, min_p is a threshold. Legend: R rows, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chatbench.engine.constraints import Constraint
from chatbench.errors import IntegrityError
from chatbench.settings import SamplingSettings

# top_p without top_k looks at so many tokens first, and at four times as many until they do.
_FIRST_LOOK = 256
_GROWTH = 4
# Of so few tokens Python draws faster than torch is called.
_FEW = 256


class Adjustment:
    """What a row's settings do to its logits before tokens are chosen.

    In this order: the repetition penalty over prompt and reply (Keskar et al. 2019, CTRL), presence
    and frequency penalties over the reply (OpenAI's: score - presence·[said] - frequency·times),
    logit bias, the tokens allowed, those the constraint allows. `ended`: it lets nothing follow;
    `pressed`: for want of tokens the likeliest was left out.
    """

    def __init__(
        self,
        sampling: SamplingSettings,
        prompt: Sequence[int] = (),
        bias: Mapping[int, float] | None = None,
        allowed: frozenset[int] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._repetition = sampling.repetition_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._bias = dict(bias or {})
        self._allowed = None if allowed is None else torch.tensor(sorted(allowed))
        self._counts: dict[int, int] = {}
        repeats = self._repetition != 1.0
        self._seen: dict[int, None] | None = dict.fromkeys(prompt) if repeats else None
        self._counting = self._presence != 0.0 or self._frequency != 0.0
        self._constraint = constraint
        self._state = None if constraint is None else constraint.begin()
        self.ended = self.pressed = False
        limited = bool(self._bias) or self._allowed is not None or constraint is not None
        self.needed = repeats or self._counting or limited

    def take(self, number: int) -> None:
        """This id was said."""
        if self._seen is not None:
            self._seen[number] = None
        if self._counting:
            self._counts[number] = self._counts.get(number, 0) + 1
        if self._constraint is not None:
            self._state = self._constraint.after(self._state, number)
            self.ended = self._constraint.ended(self._state)

    def apply(self, scores: Tensor, left: int = 0) -> None:
        """Change scores (V,) float32 in place; `left` more tokens may be said."""
        if self._seen:
            _penalise(scores, torch.tensor(list(self._seen)), self._repetition)
        if self._counts:
            said = torch.tensor(list(self._counts))
            times = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            scores[said] -= self._presence + self._frequency * times
        if self._bias:
            scores[torch.tensor(list(self._bias))] += torch.tensor(list(self._bias.values()))
        if self._allowed is not None:
            kept = scores[self._allowed]
            scores.fill_(-math.inf)
            scores[self._allowed] = kept
        if self._constraint is not None:
            mask = self._constraint.mask(self._state, left)
            cut = -math.inf if mask.cut is None else float(scores[mask.cut].max())
            scores.masked_fill_(mask.forbidden, -math.inf)
            self.pressed = self.pressed or cut > float(scores.max())


def choose(logits: Tensor, sampling: SamplingSettings, generator: torch.Generator,
           seen: Tensor | None = None) -> int:  # fmt: skip
    """Draw an id from logits (V,). `seen` (N,) holds the ids the repetition penalty applies to.

    Order of the filters: repetition penalty, temperature, top_k, top_p, min_p.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0 and seen is not None and len(seen):
        scores = scores.clone()
        _penalise(scores, seen, sampling.repetition_penalty)
    return choose_rows(scores[None], [sampling], [generator])[0]


def choose_rows(
    scores: Tensor, samplings: Sequence[SamplingSettings], generators: Sequence[torch.Generator]
) -> list[int]:
    """An id for each row of adjusted scores (R, V) float32. Rows of one kind are computed together,
    by arithmetic in which they do not meet. Raises IntegrityError where a row's largest score is
    no finite number."""
    if not bool(scores.amax(-1).isfinite().all()):
        raise IntegrityError(
            "the model computes scores that are no finite numbers, so its weights are damaged or "
            "its training diverged",
            hint="take an earlier checkpoint, or the original files",
        )
    chosen = [0] * len(samplings)
    kinds: dict[int | None, list[int]] = {}
    for place, sampling in enumerate(samplings):
        kind = None if sampling.temperature == 0 else min(sampling.top_k, scores.shape[1])
        kinds.setdefault(kind, []).append(place)
    for kind, places in kinds.items():
        part = scores if len(places) == len(samplings) else scores[places]
        if kind is None:
            found = part.argmax(-1).tolist()
        elif kind > 0:
            rows = [(samplings[place], generators[place]) for place in places]
            found = _draw_top_k(part, kind, rows)
        else:
            found = [
                _draw(row, samplings[place], generators[place])
                for row, place in zip(part, places, strict=True)
            ]
        for place, number in zip(places, found, strict=True):
            chosen[place] = number
    return chosen


def _draw_top_k(
    scores: Tensor, k: int, rows: Sequence[tuple[SamplingSettings, torch.Generator]]
) -> list[int]:
    """One id for each row of scores (R, V) from its k likeliest."""
    kept, ids = scores.topk(k)
    if k <= _FEW:
        return [
            numbers[_draw_few(values, *row)]
            for values, numbers, row in zip(kept.tolist(), ids.tolist(), rows, strict=True)
        ]
    limits = torch.tensor(
        [[s.temperature, s.top_p, _floor(s)] for s, _ in rows], dtype=torch.float64
    )
    heated = kept.double() / limits[:, :1]
    mass = heated.softmax(-1)
    mass *= _survivors(heated, mass, limits[:, 1:2], limits[:, 2:])
    return ids.gather(1, _positions(mass, [g for _, g in rows])).squeeze(1).tolist()


def _draw_few(values: list[float], sampling: SamplingSettings, generator: torch.Generator) -> int:
    """The place that is drawn among scores that fall: `_survivors` and `_positions` in Python."""
    highest = values[0]
    mass = [math.exp((value - highest) / sampling.temperature) for value in values]
    if sampling.top_p < 1.0:
        enough, reached, count = sampling.top_p * math.fsum(mass), 0.0, 0
        while count < len(mass) and reached < enough:
            reached += mass[count]
            count += 1
        del mass[count:]
    while mass[-1] < sampling.min_p or mass[-1] == 0.0:
        del mass[-1]
    wanted = float(torch.rand((), generator=generator, dtype=torch.float64)) * math.fsum(mass)
    for place, share in enumerate(mass):
        wanted -= share
        if wanted < 0.0:
            return place
    return len(mass) - 1


def _draw(scores: Tensor, sampling: SamplingSettings, generator: torch.Generator) -> int:
    """One id from scores (V,), where top_k is off."""
    heated = scores / sampling.temperature
    if sampling.top_p == 1.0 and sampling.min_p == 0.0:
        mass = (heated - heated.max()).exp()
        return int(_positions(mass.double()[None], [generator]))
    kept, ids = likely_tokens(heated, sampling)
    return int(ids[_positions(kept.double().softmax(0)[None], [generator])[0, 0]])


def _positions(mass: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Inverse CDF with one uniform number a row: (R, K) float64 → places (R, 1). Half the work of
    multinomial, and in float64 exact enough."""
    drawn = torch.empty(len(mass), 1, dtype=torch.float64)
    for place, generator in enumerate(generators):
        drawn[place].uniform_(generator=generator)
    reached = mass.cumsum(-1)
    total = reached[:, -1:]
    # Below the total whatever rounding does, so that no token without mass is drawn.
    wanted = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, wanted, right=True)


def likely_tokens(scores: Tensor, sampling: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Those of scores (V,) that survive top_k, top_p and min_p, and their ids; likeliest first
    where a filter is on."""
    size = len(scores)
    if sampling.top_k:
        kept, ids = scores.topk(min(sampling.top_k, size))
        mass = kept.double().softmax(0)
    elif sampling.top_p < 1.0:
        kept, ids, mass = _nucleus(scores, sampling.top_p)
    elif sampling.min_p > 0.0:
        ids = (scores.double() - scores.max() >= _floor(sampling)).nonzero().squeeze(1)
        kept, order = scores[ids].sort(descending=True)
        return kept, ids[order]
    else:
        return scores, torch.arange(size)
    limits = torch.tensor([[sampling.top_p], [_floor(sampling)]], dtype=torch.float64)
    lasting = _survivors(kept.double()[None], mass[None], limits[:1], limits[1:])[0]
    return kept[lasting], ids[lasting]


def _nucleus(scores: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Enough of the largest of scores (V,) to hold top_p, their ids and mass in the whole."""
    highest = scores.max()
    total = (scores - highest).exp().sum(dtype=torch.float64)
    look = _FIRST_LOOK
    while True:
        kept, ids = scores.topk(min(look, len(scores)))
        mass = (kept.double() - highest).exp() / total
        if len(kept) == len(scores) or float(mass.sum()) >= top_p:
            return kept, ids, mass
        look *= _GROWTH


def _survivors(scores: Tensor, mass: Tensor, top_p: Tensor, floor: Tensor) -> Tensor:
    """(R, K) bool of scores that fall along each row, with their mass; limits (R, 1).

    The nucleus (Holtzman et al. 2020) is the smallest set that reaches top_p.
    """
    before = torch.zeros_like(mass)
    before[:, 1:] = mass.cumsum(-1)[:, :-1]
    # Sums of everything may end below or above 1.
    inside = (before < top_p) | (top_p == 1.0)
    return inside & (scores - scores[:, :1] >= floor)


def _floor(sampling: SamplingSettings) -> float:
    """How far below the largest score min_p lets one be."""
    return math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf


def _penalise(scores: Tensor, seen: Tensor, penalty: float) -> None:
    """Positive scores shrink, negative ones grow, in place."""
    values = scores[seen]
    scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
