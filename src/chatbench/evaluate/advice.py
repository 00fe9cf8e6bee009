"""Where next: what the numbers of an evaluation and of its run suggest, in words, with a command.

A pure function of the numbers. Thresholds are rules of thumb and say so by their words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import msgspec

_MOST = 5
# Tokens a parameter should have seen (Hoffmann et al. 2022).
_TOKENS_PER_PARAMETER = 20


class Curve(msgspec.Struct, frozen=True):
    """What a run tells of itself: losses in nats a token; `halfway` and `last` are validation
    losses at half of the tokens and at the end, `best` the lowest."""

    train: float | None = None
    halfway: float | None = None
    last: float | None = None
    best: float | None = None
    best_at: float | None = None  # share of the steps
    tokens: int = 0
    corpus_tokens: int = 0
    steps: int = 0
    run: str = "RUN"
    corpus: str = "CORPUS"
    finetuned: bool = False


class Numbers(msgspec.Struct, frozen=True):
    """Everything that advice is drawn from; what is not known is left out."""

    model: str
    data: str
    scores: Mapping[str, float] = {}
    parameters: int = 0
    curve: Curve | None = None
    ngram_bits_per_byte: float | None = None
    chrf_by_script: Mapping[str, float] = {}
    lacking: Mapping[str, float] = {}  # upper end of ours - baseline in chrf, by baseline
    at_limit: float = 0.0  # share of replies that were cut at the length limit


class Advice(msgspec.Struct, frozen=True):
    """A finding, why it is one, and a command to try."""

    finding: str
    why: str
    command: str


def advise(numbers: Numbers) -> list[Advice]:
    """At most five, the most telling first."""
    found = [advice for rule in _RULES for advice in rule(numbers)]
    return found[:_MOST]


def _epochs(curve: Curve) -> float:
    return curve.tokens / curve.corpus_tokens if curve.corpus_tokens else 0.0


def _again(curve: Curve, change: str) -> str:
    """The command of the run with something changed."""
    verb = "finetune" if curve.finetuned else "pretrain"
    return f"chatbench {verb} -c {curve.run}/config.toml -o {curve.run}-next {change}"


def _larger(parameters: int) -> str:
    """The next size that has a name."""
    sizes = (("small", 10e6), ("base", 60e6), ("gpt2-medium", 300e6), ("gpt2-large", 700e6))
    return next((name for name, size in sizes if parameters < size), "gpt2-xl")


def _overfitting(n: Numbers) -> Iterator[Advice]:
    curve = n.curve
    if curve is None or curve.best is None or curve.last is None:
        return
    if curve.last > 1.03 * curve.best and (curve.best_at or 1.0) < 0.8:
        yield Advice(
            "overfitting",
            f"validation loss rose from {curve.best:.3f} to {curve.last:.3f} after "
            f"{100 * (curve.best_at or 0):.0f} % of the steps; the best model was kept",
            _again(curve, f"--steps {max(1, round((curve.best_at or 1) * curve.steps))}"),
        )


def _data_limited(n: Numbers) -> Iterator[Advice]:
    curve = n.curve
    if curve is None or curve.train is None or curve.last is None:
        return
    gap, epochs = curve.last - curve.train, _epochs(curve)
    if gap > 0.15 * curve.last and epochs > 3:
        yield Advice(
            "limited by data",
            f"the training loss is {gap:.2f} below the validation loss after {epochs:.1f} passes "
            "over the text: what it sees again it knows already",
            "chatbench preprocess TEXTS MORE_TEXTS -o corpus-next && "
            + _again(curve, "-d corpus-next"),
        )


def _undertrained(n: Numbers) -> Iterator[Advice]:
    curve = n.curve
    if curve is None or curve.halfway is None or curve.last is None:
        return
    gain = 1 - curve.last / curve.halfway if curve.halfway else 0.0
    if gain > 0.03:
        yield Advice(
            "undertrained",
            f"the second half of the run still took {100 * gain:.0f} % off the validation loss",
            _again(curve, f"--steps {2 * curve.steps}"),
        )


def _size_limited(n: Numbers) -> Iterator[Advice]:
    curve = n.curve
    if curve is None or curve.train is None or curve.last is None or not n.parameters:
        return
    flat = curve.halfway is not None and curve.last > 0.98 * curve.halfway
    seen = curve.tokens / n.parameters
    close = curve.last - curve.train < 0.05 * curve.last
    if flat and close and seen > _TOKENS_PER_PARAMETER and not curve.finetuned:
        yield Advice(
            "limited by size",
            f"the loss stands still at {seen:.0f} tokens a parameter, and training is no better "
            "than validation",
            f"chatbench pretrain -d {curve.corpus} -o {curve.run}-next --size "
            f"{_larger(n.parameters)}",
        )


def _starved(n: Numbers) -> Iterator[Advice]:
    curve = n.curve
    if curve is None or curve.finetuned or not n.parameters or not curve.tokens:
        return
    seen = curve.tokens / n.parameters
    if _epochs(curve) > 3:
        return
    if seen < _TOKENS_PER_PARAMETER / 4:
        yield Advice(
            "few tokens for its size",
            f"{seen:.1f} tokens a parameter, where about {_TOKENS_PER_PARAMETER} pay best",
            _again(curve, f"--steps {4 * curve.steps}"),
        )


def _below_ngram(n: Numbers) -> Iterator[Advice]:
    ours = n.scores.get("bits_per_byte", math.nan)
    if n.ngram_bits_per_byte is not None and ours >= n.ngram_bits_per_byte:
        yield Advice(
            "no better than n-grams",
            f"{ours:.3f} bits per byte, where counting 5-grams of the training text gives "
            f"{n.ngram_bits_per_byte:.3f}",
            _again(n.curve or Curve(), f"--steps {2 * (n.curve or Curve()).steps or 1000}"),
        )


def _behind_baseline(n: Numbers) -> Iterator[Advice]:
    for name, highest in sorted(n.lacking.items()):
        if highest < 0 and name in ("bm25", "copy", "eliza"):
            means = {"bm25": "the training reply to the nearest question", "copy":
                     "repeating the question", "eliza": "a few rules"}[name]  # fmt: skip
            yield Advice(
                f"behind {name}",
                f"{means} is at least {-highest:.1f} chrF better than the model",
                f"chatbench finetune -m {n.model} -d DIALOGUES -o bot-next --epochs 6",
            )


def _copying(n: Numbers) -> Iterator[Advice]:
    replies = n.scores.get("verbatim_overlap", math.nan)
    references = n.scores.get("verbatim_overlap_references", math.nan)
    if replies > 60 and replies > references + 25:
        yield Advice(
            "copies its training text",
            f"{replies:.0f} % of the words of its replies are one run of training text, against "
            f"{references:.0f} % of the references",
            "chatbench preprocess TEXTS -o corpus-next --dedup near",
        )


def _length(n: Numbers) -> Iterator[Advice]:
    ratio = n.scores.get("length_ratio", math.nan)
    if n.at_limit > 0.2:
        yield Advice(
            "replies do not end",
            f"{100 * n.at_limit:.0f} % of the replies were cut at --max-tokens",
            f"chatbench evaluate -m {n.model} -d {n.data} --max-tokens 512",
        )
    elif ratio < 0.6 or ratio > 1.7:
        word = "short" if ratio < 1 else "long"
        yield Advice(
            f"replies are too {word}",
            f"they have {ratio:.2f} times the words of their references",
            f"chatbench finetune -m {n.model} -d DIALOGUES_OF_THAT_LENGTH -o bot-next",
        )


def _repeating(n: Numbers) -> Iterator[Advice]:
    share = n.scores.get("repetition", math.nan)
    if share > 10:
        yield Advice(
            "repeats itself",
            f"{share:.0f} % of the 4-grams of its replies stood in the same reply before",
            f"chatbench chat -m {n.model} --repetition-penalty 1.15",
        )


def _lagging(n: Numbers) -> Iterator[Advice]:
    if len(n.chrf_by_script) < 2:
        return
    by_value = sorted(n.chrf_by_script.items(), key=lambda each: each[1])
    (worst, low), (best, high) = by_value[0], by_value[-1]
    if high > 5 and low < 0.6 * high:
        yield Advice(
            f"{worst} lags behind",
            f"chrF {low:.1f} on replies in {worst} script, {high:.1f} in {best}",
            f"chatbench preprocess TEXTS MORE_TEXTS_IN_{worst.upper()} -o corpus-next",
        )


_RULES: tuple[Callable[[Numbers], Iterator[Advice]], ...] = (
    _below_ngram, _behind_baseline, _overfitting, _data_limited, _undertrained, _starved,
    _size_limited, _copying, _length, _repeating, _lagging,
)  # fmt: skip
