"""What a person sees of a run that is going on: a few lines that fit into any terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from chatbench.console import format_count, format_duration, visible

_LONGEST_HISTORY = 512
_LEAST_SPARK = 8
_MOST_SPARK = 60
_SHARE_OF_PROMPT = 0.35


class Glyphs(NamedTuple):
    """What the block is drawn with."""

    levels: str
    full: str
    empty: str
    between: str
    prompt: str
    arrow: str
    cut: str


UNICODE = Glyphs("▁▂▃▄▅▆▇█", "━", "─", " · ", "› ", " → ", "…")
ASCII = Glyphs("_.-:=+*#", "#", "-", " | ", "> ", " -> ", "~")


def glyphs_for(encoding: str) -> Glyphs:
    """Those that a terminal of this encoding can show."""
    try:
        "".join(UNICODE).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


# What objectives report beside the loss: the name in metrics.jsonl, after `val_` that of held-out
# data; what people see.
REPORTED: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", lambda v: f"{v:.1%}"),
    "reward_margin": ("margin", lambda v: f"{v:+.3f}"),
    "reward_chosen": ("chosen", lambda v: f"{v:+.3f}"),
    "reward_rejected": ("rejected", lambda v: f"{v:+.3f}"),
    "reward": ("reward", lambda v: f"{v:.3f}"),
    "reward_spread": ("spread", lambda v: f"{v:.3f}"),
    "silent_groups": ("silent", lambda v: f"{v:.0%}"),
    "reply_tokens": ("length", lambda v: f"{v:.1f}"),
    "truncated": ("truncated", lambda v: f"{v:.0%}"),
    "entropy": ("entropy", lambda v: f"{v:.2f}"),
    "kl": ("KL", lambda v: f"{v:.3f}"),
}


class History:
    """A curve in bounded room: when it is full, neighbours become their mean."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._stride = 1
        self._begun: list[float] = []

    def add(self, value: float) -> None:
        """One more point; what is not finite is left out."""
        if not math.isfinite(value):
            return
        self._begun.append(value)
        if len(self._begun) < self._stride:
            return
        self.values.append(math.fsum(self._begun) / len(self._begun))
        self._begun.clear()
        if len(self.values) == _LONGEST_HISTORY:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(a + b) / 2 for a, b in pairs]
            self._stride *= 2


def sparkline(values: Sequence[float], columns: int, levels: str) -> str:
    """A curve of at most `columns` characters. The highest tenth is cut off: a loss falls so fast
    at first that nothing else would be seen."""
    count = min(columns, len(values))
    if count < 1:
        return ""
    borders = [len(values) * n // count for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(borders)]
    low, high = min(means), sorted(means)[int(0.9 * (count - 1))]
    if high <= low:
        high = max(means)
    if high <= low:
        return levels[0] * count
    top = len(levels) - 1
    return "".join(levels[min(top, round(top * (mean - low) / (high - low)))] for mean in means)


def shorten(text: str, columns: int, cut: str) -> str:
    """`text` on one line in at most `columns`, marked by `cut` when something is missing.

    Joined emoji count as their parts: terminals differ, and none draws them wider than that.
    """
    text = " ".join(text.split())
    if sum(map(cell_len, text)) <= columns:
        return text
    kept, used = "", cell_len(cut)
    for c in text:
        used += cell_len(c)
        if used > columns:
            break
        kept += c
    return kept.rstrip("\u200d") + cut if columns >= cell_len(cut) else ""


class Board:
    """Everything there is to see; `lines` draws it."""

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        self._glyphs = glyphs
        self.share = self.left = 0.0
        self.step = self.skipped = self.best_step = self.judged_step = 0
        self.loss = self.best = math.nan
        self.losses, self.rewards, self.validations = History(), History(), History()
        self.now: dict[str, float] = {}
        self.references: dict[str, float] = {}
        self.samples: list[tuple[str, str]] = []

    def take(self, row: Mapping[str, object]) -> None:
        """A row of metrics.jsonl or timings.jsonl."""
        step = row.get("step")
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float))}
        self.now |= numbers
        self.skipped += "skipped" in row
        if "loss" in numbers:
            self.loss = numbers["loss"]
            self.losses.add(self.loss)
        if "reward" in numbers:
            self.rewards.add(numbers["reward"])
        if "val_loss" in numbers:
            value = numbers["val_loss"]
            self.validations.add(self._shown_value(value))
            self.judged_step = int(step) if isinstance(step, int) else 0
            if math.isfinite(value) and not self.best <= value:
                self.best, self.best_step = value, self.judged_step

    def lines(self, width: int, height: int) -> list[Text]:
        """At most `height` lines of less than `width` columns, the most telling first."""
        room = max(1, width - 1)
        curve = self._curve("loss", self.loss, self.losses, "cyan", room)
        if self.rewards.values:  # the loss of a policy says nothing
            curve = self._curve("reward ", self.now["reward"], self.rewards, "cyan", room)
        lines = [self._progress(room), curve]
        if self.validations.values:
            lines.append(self._validation(room))
        lines += [Text(line) for line in self._packed([*self.reported(), *self.bits()], room)]
        lines += [Text(line, "dim") for line in self._packed(self.speed(), room)]
        for prompt, text in self.samples:
            lines.append(self._sample(prompt, text, room))
        for line in lines:
            line.truncate(room)
        return lines[:height]

    def _progress(self, room: int) -> Text:
        begin = f"{100 * self.share:3.0f} % "
        end = f" step {self.step:,}{self._glyphs.between}{format_duration(self.left)} left"
        columns = min(_MOST_SPARK, room - len(begin) - len(end))
        if columns < _LEAST_SPARK:
            return Text(begin + end.strip(), "bold")
        full = round(columns * min(1.0, self.share))
        return Text.assemble(
            (begin, "bold"), (self._glyphs.full * full, "green"),
            (self._glyphs.empty * (columns - full), "dim"), (end, "bold"),
        )  # fmt: skip

    def _curve(
        self, name: str, value: float, history: History, style: str, room: int, end: str = ""
    ) -> Text:
        begin = f"{name:<5}{value:.3f} " if math.isfinite(value) else f"{name:<5}"
        columns = min(_MOST_SPARK, room - len(begin) - len(end))
        drawn = ""
        if columns >= _LEAST_SPARK:
            drawn = sparkline(history.values, columns, self._glyphs.levels)
        return Text.assemble((begin, "bold"), (drawn, style), end)

    @property
    def _is_rewarded(self) -> bool:
        """Whether what is validated is a reward, of which the loss is the negative."""
        return "val_reward" in self.now

    def _shown_value(self, loss: float) -> float:
        return 0.0 - loss if self._is_rewarded else loss

    def _validation(self, room: int) -> Text:
        name = "val reward " if self._is_rewarded else "val"
        value = self._shown_value(self.now["val_loss"])
        return self._curve(name, value, self.validations, "magenta", room, f" {self._mark()}")

    def _mark(self) -> str:
        """The first of equals is the best."""
        if self.judged_step == self.best_step:
            return "best"
        return f"best {self._shown_value(self.best):.3f} at step {self.best_step:,}"

    def verdict(self) -> str:
        """The last validation in words."""
        name = "val reward" if self._is_rewarded else "val"
        return f"{name} {self._shown_value(self.now['val_loss']):.3f} ({self._mark()})"

    def lately(self) -> str:
        """What training is at: the loss, or the reward where a loss says nothing."""
        if self.rewards.values:
            return f"reward {self.now['reward']:.3f}"
        return f"loss {self.loss:.3f}"

    def reported(self) -> list[str]:
        """What the objective says of the last validation besides, of training where nothing is
        held out. A reward has a curve of its own."""
        return [
            f"{shown} {make(self.now.get(f'val_{name}', self.now.get(name, math.nan)))}"
            for name, (shown, make) in REPORTED.items()
            if name != "reward" and (name in self.now or f"val_{name}" in self.now)
        ]

    def bits(self) -> list[str]:
        """Bits per byte, and what to hold them against."""
        found = self.now.get("val_bits_per_byte")
        facts = [] if found is None else [f"bits per byte {found:.3f}"]
        names = {"ngram_bits_per_byte": "n-gram", "uniform_bits_per_byte": "chance"}
        facts += [
            f"{shown} {self.references[name]:.3f}"
            for name, shown in names.items()
            if name in self.references
        ]
        return facts

    def speed(self) -> list[str]:
        """How fast, how large, how steady."""
        shown: dict[str, Callable[[float], str]] = {
            "tokens_per_second": lambda v: f"{format_count(v)} tok/s",
            "mfu": lambda v: f"MFU {100 * v:.0f} %",
            "memory": lambda v: f"{format_count(v)}B memory",
            "learning_rate": lambda v: f"rate {v:.2g}",
            "grad_norm": lambda v: f"norm {v:.2g}",
        }
        facts = [make(self.now[name]) for name, make in shown.items() if name in self.now]
        return [*facts, f"{self.skipped} skipped"] if self.skipped else facts

    def _packed(self, facts: list[str], room: int) -> list[str]:
        """Facts on as few lines as they fit."""
        lines: list[str] = []
        for fact in facts:
            longer = f"{lines[-1]}{self._glyphs.between}{fact}" if lines else fact
            if lines and len(longer) <= room:
                lines[-1] = longer
            else:
                lines.append(fact)
        return lines

    def _sample(self, prompt: str, text: str, room: int) -> Text:
        mark, arrow, cut = self._glyphs.prompt, self._glyphs.arrow, self._glyphs.cut
        prompt, text = (self._shown(each) for each in (prompt, text))
        asked = shorten(prompt, int(_SHARE_OF_PROMPT * room), cut)
        left = room - sum(map(cell_len, mark + asked + arrow))
        return Text.assemble((mark + asked + arrow, "dim"), shorten(text, left, cut))

    def _shown(self, text: str) -> str:
        text = visible(" ".join(text.split()))
        if self._glyphs is ASCII:
            return text.encode("ascii", "backslashreplace").decode()
        return text
