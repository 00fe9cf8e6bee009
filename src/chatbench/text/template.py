"""A conversation becomes ids and weights piece by piece; its contents never become control tokens.

ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`. Contents are stripped of outer white space, so
the split pattern always parts `role\\n` from the content and the ids of a training prefix equal the
ids of the chat prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from chatbench.conversation import Message

if TYPE_CHECKING:
    from chatbench.text.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

# What transformers, vLLM and mlx-lm render; gives the ids of `render` for any contents free of
# control-token lookalikes.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content | trim) + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class Rendered(NamedTuple):
    """`weights[i]` is 1 where token i is to be learned: replies and their end of turn."""

    ids: list[int]
    weights: list[int]


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """The ids a model is trained on for these turns."""
    return next(iter(render_batch(tokenizer, [messages])))


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> Iterable[Rendered]:
    """`render` of each; all contents are encoded in one parallel call."""
    pieces = [
        piece
        for messages in conversations
        for message in messages
        for piece in (f"{message.role}\n", message.content.strip())
    ]
    encoded = iter(tokenizer.encode_batch(pieces))
    newline = tokenizer.encode("\n")
    for messages in conversations:
        ids: list[int] = []
        weights: list[int] = []
        for message in messages:
            header, content = next(encoded), next(encoded)
            learned = int(message.role == "assistant" and message.weight)
            ids += [tokenizer.turn_start, *header, *content, tokenizer.turn_end]
            weights += [0] * (1 + len(header)) + [learned] * (len(content) + 1)
            ids += newline
            weights += [0] * len(newline)
        yield Rendered(ids, weights)


def reply_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids after which the model writes the assistant's next reply."""
    opening = [tokenizer.turn_start, *tokenizer.encode("assistant\n")]
    return [*render(tokenizer, messages).ids, *opening]


def render_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[Rendered]:
    """Plain documents: every token and the end of the text are learned."""
    for content in tokenizer.encode_batch(texts):
        ids = [*content, tokenizer.end_of_text]
        yield Rendered(ids, [1] * len(ids))
