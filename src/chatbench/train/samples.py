"""What the model makes of a few prompts while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chatbench.engine.engine import Engine, Request
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

_SAMPLE_TOKENS = 40


class Prompt(NamedTuple):
    """What a sample continues: as shown, and as ids."""

    text: str
    ids: list[int]


def samples(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Iterator[tuple[str, str]]:
    """Each prompt with what follows it, the likeliest token each time."""
    if not prompts:
        return
    engine = Engine(model, tokenizer, max_rows=len(prompts))
    greedy = SamplingSettings(temperature=0.0, max_tokens=_SAMPLE_TOKENS)
    replies = engine.complete(Request(prompt.ids, greedy) for prompt in prompts)
    for prompt, reply in zip(prompts, replies, strict=True):
        yield prompt.text, reply.text
