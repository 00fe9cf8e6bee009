"""Steps that are not taken: where the loss is no number, or the gradient stands out by far.

A refused step leaves weights and optimiser as they were; the run goes on with the next batch.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import msgspec

from chatbench.errors import DivergedError
from chatbench.train.readings import Reading

_WINDOW = 100
_FEWEST = 20
# So many refusals one after the other are no spike but a new level, to be learnt anew.
_NEW_LEVEL = 5
# On CUDA the host learns a norm one step late; by this every device follows the same rule.
_LAG = 2


class Skips(msgspec.Struct):
    """What the rule remembers, part of every checkpoint: a resume refuses the same steps.

    `count`: all refusals; `in_a_row`: newest steps without a finite loss or gradient; `recent`:
    step, gradient norm and whether it was taken, of finite steps after the warm-up.
    """

    count: int = 0
    in_a_row: int = 0
    recent: list[tuple[int, float, bool]] = msgspec.field(default_factory=list)

    def limit(self, step: int, spike: float) -> float:
        """The largest gradient norm that step `step` may have: `spike` times the median (or the
        median deviation, where that is larger) above the median of norms taken before."""
        taken: list[float] = []
        refused = 0
        known = [entry for entry in self.recent if entry[0] <= step - _LAG][-_WINDOW:]
        for _, norm, was_taken in known:
            refused = 0 if was_taken else refused + 1
            if refused >= _NEW_LEVEL:
                taken.clear()
            elif was_taken:
                taken.append(norm)
        if not spike or len(taken) < _FEWEST:
            return math.inf
        middle = median(taken)
        spread = median(abs(norm - middle) for norm in taken)
        return middle + spike * max(middle, spread) if middle else math.inf

    def note(self, reading: Reading) -> str | None:
        """Take in a step; why it was refused, or None."""
        finite = math.isfinite(reading.total) and math.isfinite(reading.norm)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.count += reading.refused
        if finite and reading.watched:
            self.recent.append((reading.step, reading.norm, not reading.refused))
            del self.recent[: -_WINDOW - _LAG]
        if not reading.refused:
            return None
        if not math.isfinite(reading.total):
            return f"loss is {reading.total}"
        if not math.isfinite(reading.norm):
            return f"gradient norm is {reading.norm}"
        return f"gradient norm {reading.norm:.4g} is above {reading.limit:.4g}"

    def diverged(self, step: int, saved: list[Path]) -> DivergedError:
        """What to raise when too many steps in a row, up to `step`, were no numbers."""
        last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved"
        return DivergedError(
            f"the loss is no number for {self.in_a_row} steps in a row, up to step {step}; {last}",
            hint="start again with a lower --learning-rate",
        )
