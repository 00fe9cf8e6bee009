"""What the model makes of a few prompts while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from chatbench.conversation import Message, parse_messages
from chatbench.corpus.shards import Corpus
from chatbench.engine.engine import Engine, Request
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer

_SAMPLE_TOKENS = 40
_PROMPT_CHARACTERS = 24
_SAMPLES = 2


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


def chat_prompts(given: list[str], corpus: Corpus) -> list[Prompt]:
    """What the samples answer: as given, or first questions of the validation split."""
    asked = given or [
        next((m.content for m in parse_messages(row["messages"]) if m.role == "user"), "")
        for row in _held_out_rows(corpus, "messages")
    ]
    tokenizer = corpus.tokenizer
    return [Prompt(t, reply_prompt(tokenizer, [Message("user", t)])) for t in asked if t]


def text_prompts(given: list[str], corpus: Corpus) -> list[Prompt]:
    """What the samples continue: as given, or beginnings of validation texts, else questions."""
    tokenizer = corpus.tokenizer
    begun = given or [row["text"][:_PROMPT_CHARACTERS] for row in _held_out_rows(corpus, "text")]
    prompts = [
        Prompt(text, [*tokenizer.text_prefix, *tokenizer.encode(text)]) for text in begun if text
    ]
    return prompts or chat_prompts([], corpus)


def _held_out_rows(corpus: Corpus, key: str) -> Iterator[dict[str, Any]]:
    """The first rows of the validation split that have this key."""
    yield from islice((row for row in corpus.rows("val") if key in row), _SAMPLES)
