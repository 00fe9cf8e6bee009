"""What a reply is worth: plain functions from prompt, reply and reference to a number.

On the command line a reward is NAME[:ARGUMENT][*WEIGHT]. Metrics count from 0 to 1 here, and so do
the rules of this file; weights may be negative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from chatbench.errors import UsageError, did_you_mean
from chatbench.text.metrics import METRICS, Judged, contains_fact, words
from chatbench.text.screen import open_screen


class Exchange(NamedTuple):
    """`prompt`: the turns before the reply as text, control tokens left out; `reference`: the reply
    that the data hold there."""

    prompt: str
    reply: str
    reference: str


Reward = Callable[[Exchange], float]
# The name of a tag → its reward, which hangs on what the training data say.
TagReward = Callable[[str], Reward]


class Weighted(NamedTuple):
    """One of several rewards that are added up; no other has its `name`."""

    name: str
    weight: float
    worth: Reward


# What these say of a set of replies they cannot say of one.
_OF_SETS = ("exact_fact_match", "self_bleu", "length_ratio")
_ALIASES = {"f1": "token_f1"}
_SPELLED = re.compile(
    r"(?P<name>[^:*]+)(?::(?P<argument>.*?))?(?:\*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)))?", re.DOTALL
)


def parse_rewards(given: Sequence[str], of_tag: TagReward) -> list[Weighted]:
    """The rewards that `given` names, in order. Raises UsageError for what is none."""
    if not given:
        raise UsageError("nothing says what a reply is worth", hint="such as --reward exact_match")
    found: list[Weighted] = []
    for text in given:
        spelled = _SPELLED.fullmatch(text)
        if spelled is None:
            raise UsageError(f"--reward {text} is no reward", hint="such as --reward exact_match")
        name = spelled["name"].strip()
        weight = 1.0 if spelled["weight"] is None else float(spelled["weight"])
        argument = spelled["argument"]
        worth = of_tag((argument or "").strip()) if name == "tag" else reward(name, argument)
        again = sum(1 for other in found if other.name.split("#")[0] == name)
        found.append(Weighted(f"{name}#{again + 1}" if again else name, weight, worth))
    return found


def reward(name: str, argument: str | None = None) -> Reward:
    """One reward by its name. Raises UsageError when there is none of that name, or its argument
    does not fit."""
    plain = _ALIASES.get(name, name)
    if plain in RULES and not (plain in METRICS and not argument):
        return RULES[plain](argument or "")
    if plain in METRICS and plain not in _OF_SETS:
        return _metric(plain, argument)
    known = [*RULES, *(metric for metric in METRICS if metric not in _OF_SETS), "tag"]
    raise UsageError(f"there is no reward {name}", hint=did_you_mean(name, sorted({*known})))


def total(rewards: Sequence[Weighted], worths: Sequence[float]) -> float:
    """What a reply is worth by all of them."""
    return math.fsum(each.weight * worth for each, worth in zip(rewards, worths, strict=True))


def _metric(name: str, part: str | None) -> Reward:
    """A metric of one reply, 1 for 100; `part`: which one, of a function that measures several."""
    measure = METRICS[name]
    parts = [found.name for found in measure([Judged("a", "a")])]
    if part is not None and part not in parts:
        raise UsageError(f"{name} has no part {part}", hint=did_you_mean(part, parts))

    def worth(exchange: Exchange) -> float:
        found = measure([Judged(exchange.reply, exchange.reference)])
        value = next((each.value for each in found if part in (None, each.name)), 0.0)
        # What cannot be measured on a reply, such as one without words, is worth nothing.
        return value / 100 if math.isfinite(value) else 0.0

    return worth


def contains(text: str) -> Reward:
    """1 for a reply in which the text stands as a whole, whatever its case and width."""
    return lambda exchange: float(contains_fact(exchange.reply, text))


def length(limits: str) -> Reward:
    """1 for a reply of so many words (characters, where a script has no spaces), less the further
    it is from there: by the share that is missing, or that is too much."""
    spelled = re.fullmatch(r"(\d+)-(\d+)", limits)
    least, most = map(int, spelled.groups()) if spelled else (1, 0)
    if least > most or not most:
        raise UsageError(f"--reward length:{limits} is no range", hint="such as length:5-20")

    def worth(exchange: Exchange) -> float:
        count = len(words(exchange.reply))
        if count < least:
            return count / least
        return max(0.0, 1 - (count - most) / most) if count > most else 1.0

    return worth


def regex(pattern: str) -> Reward:
    """1 for a reply in which the regular expression is found."""
    try:
        sought = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--reward regex:{pattern} is no regular expression: {error}") from None
    if not pattern:
        raise UsageError("--reward regex has no pattern", hint=r"such as regex:'^\d+$'")
    return lambda exchange: float(sought.search(exchange.reply) is not None)


def screen(argument: str) -> Reward:
    """How sure a screen (`chatbench screen`) is that a reply is good; of FOLDER#CATEGORY, how sure
    that it is of that category."""
    folder, _, category = argument.partition("#")
    judge = open_screen(folder)
    if not category:
        return lambda exchange: 1.0 - float(judge.judge([exchange.reply])[0])
    if category not in judge.categories:
        raise UsageError(
            f"{folder} knows no category {category}",
            hint=did_you_mean(category, list(judge.categories)),
        )
    place = judge.categories.index(category)
    return lambda exchange: float(judge.category_scores([exchange.reply])[0, place])


RULES: Mapping[str, Callable[[str], Reward]] = {
    "contains": contains,
    "length": length,
    "regex": regex,
    "screen": screen,
}
