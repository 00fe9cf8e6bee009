"""What to train for an amount of time or text: the shape whose forecast is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chatbench.model.config import ModelConfig
from chatbench.train.forecast import Difficulty, forecast, worth
from chatbench.train.meters import flops_per_token
from chatbench.train.probe import Timing

_WIDTHS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
_HEAD_DIM = 64
_FEWEST_LAYERS = 2
# Of shapes that differ by less than this the smaller one: it answers faster, and repeats less.
_WORTH_ITS_SIZE = 1.002
# Without an update at least this often, a run ends before it has learned to move.
_STEPS = 1000
_SMALLEST_BATCH = 1024
# "Power Lines" (Bergsma et al. 2025): the batch up to which more tokens a step cost no more tokens.
_BATCH_AT = (1.3e9, 2**19, 0.383)
_LARGEST_SHARE = 0.5
_SEEN_OFTEN = 30

Clock = Callable[[ModelConfig], Timing]


class Amount(NamedTuple):
    """How much training: seconds, or tokens."""

    seconds: float | None = None
    tokens: float | None = None


class Choice(NamedTuple):
    """A shape, tokens a step, and the tokens that it will have seen at the end."""

    config: ModelConfig
    batch_tokens: int
    tokens: float


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Of the blocks (norms apart), and of the embedding and the head."""
    body = flops_per_token(config._replace(vocab_size=1), 0) / 6 - config.hidden_size
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * config.hidden_size
    return round(body), tables


def batch_for(tokens: float) -> int:
    """Tokens a step for a run of `tokens`: a power of two, a thousand steps where there are enough
    tokens, since small budgets want many small steps."""
    reference, batch, power = _BATCH_AT
    useful = min(batch * (tokens / reference) ** power, tokens / _STEPS)
    return max(_SMALLEST_BATCH, 1 << round(math.log2(max(useful, 1.0))))


def context_for(width: int, longest: int) -> int:
    """Longer for wider models, which cost less by it; no longer than `longest` tokens need."""
    usual = 256 if width <= 320 else 512 if width <= 640 else 1024
    return max(128, min(usual, 1 << max(0, longest - 1).bit_length()))


def shapes(template: ModelConfig, longest: int) -> Iterator[ModelConfig]:
    """Shapes from small to large, about 64 times as wide as deep (as in nanochat), with the
    vocabulary and everything else of `template`; `longest`: documents are hardly longer, tokens."""
    for width in _WIDTHS:
        heads = width // _HEAD_DIM
        yield template._replace(
            n_layers=max(_FEWEST_LAYERS, heads), hidden_size=width, n_heads=heads,
            n_kv_heads=heads // 2 if heads % 2 == 0 and heads >= 4 else heads,
            head_dim=_HEAD_DIM, ffn_size=-(-width * 8 // 3 // _HEAD_DIM) * _HEAD_DIM,
            context=context_for(width, longest),
        )  # fmt: skip


def outcome(config: ModelConfig, timing: Timing, seconds: float, batch: int | None) -> Choice:
    """How far this shape comes in `seconds`, with the batch given or the one that suits."""
    tokens_a_step = batch or _SMALLEST_BATCH
    while True:
        tokens = seconds / timing.step(tokens_a_step) * tokens_a_step
        suited = batch or batch_for(tokens)
        if suited <= tokens_a_step:
            return Choice(config, tokens_a_step, tokens)
        tokens_a_step = suited


def choose(
    candidates: list[ModelConfig], amount: Amount, clock: Clock, hard: Difficulty,
    batch: int | None = None, fits: Callable[[ModelConfig], bool] = lambda config: True,
) -> Choice:  # fmt: skip
    """The shape to train for `amount`; `clock` says how long a step takes, `fits` whether memory
    suffices. Of tokens: the largest shape that would have been chosen for the time it takes."""
    able = [config for config in candidates if fits(config)] or candidates[:1]
    if amount.tokens is None:
        assert amount.seconds is not None
        return _best(able, amount.seconds, clock, hard, batch)
    tokens, step = amount.tokens, batch or batch_for(amount.tokens)
    chosen = able[0]
    for config in able:
        seconds = tokens / step * clock(config).step(step)
        best = _best(able, seconds, clock, hard, batch).config
        if able.index(best) >= able.index(config):
            chosen = config
    return Choice(chosen, step, tokens)


def _best(
    able: list[ModelConfig], seconds: float, clock: Clock, hard: Difficulty, batch: int | None
) -> Choice:
    reached = [outcome(config, clock(config), seconds, batch) for config in able]
    bits = [expected_bits(choice, hard) for choice in reached]
    limit = min(bits) * _WORTH_ITS_SIZE
    return next(choice for choice, value in zip(reached, bits, strict=True) if value <= limit)


def expected_bits(choice: Choice, hard: Difficulty) -> float:
    """Bits per byte that the law expects."""
    return forecast(hard, *parameters(choice.config), choice.tokens).bits


def warnings(choice: Choice, hard: Difficulty, smallest: int = 512) -> list[str]:
    """What a person should know before the first step; `smallest`: vocabulary for the script."""
    found = []
    epochs = choice.tokens / hard.unique
    if epochs > 4:
        gained = worth(choice.tokens, hard.unique) / hard.unique
        found.append(
            f"the corpus is small for this: {epochs:.0f} passes are worth {gained:.1f} passes of "
            "fresh text; more text would help more than more time"
        )
    if advice := vocabulary_advice(choice.config, hard.unique, smallest):
        found.append(advice)
    return found


def vocabulary_advice(config: ModelConfig, unique: int, smallest: int) -> str | None:
    """Whether the vocabulary is too large for the model or the corpus, and what to do."""
    body, tables = parameters(config)
    share = tables / (body + tables)
    frequent = unique / config.vocab_size
    if share <= _LARGEST_SHARE and frequent >= _SEEN_OFTEN:
        return None
    wanted = min(body / config.hidden_size, unique / _SEEN_OFTEN)
    better = max(smallest, 1 << int(math.log2(max(wanted, 1.0))))
    if better >= config.vocab_size:
        return None
    reason = (
        f"holds {share:.0%} of the parameters" if share > _LARGEST_SHARE
        else f"sees each entry {frequent:.0f} times"
    )  # fmt: skip
    return (
        f"the vocabulary of {config.vocab_size:,} {reason}; preprocess --vocab-size {better} "
        "would leave more to the model"
    )
