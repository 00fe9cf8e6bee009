"""A conversation becomes ids and weights; its contents never become control tokens.

Which ids is the business of the tokenizer's chat template: ChatML here, others in
foreign_template.py. ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`. Contents are stripped of
outer white space, so the split pattern always parts `role\\n` from the content and the ids of a
training prefix equal the ids of the chat prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

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


class ChatTemplate(Protocol):
    """How a model was taught to read conversations.

    `source` is Jinja text that says the same to other programs. `turn_start` is the control token
    that opens every turn, where there is one; `user_turn` are the ids that open a person's.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def turn_start(self) -> int | None: ...

    @property
    def user_turn(self) -> tuple[int, ...]: ...

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> Iterable[Rendered]:
        """Each conversation as it is trained on."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the model writes the assistant's next reply."""

    def refusal(self, messages: Sequence[Message]) -> str | None:
        """Why these turns cannot be written, in words; None when they can."""


class ChatML:
    """The template of models trained here, piece by piece and without Jinja."""

    name = "chatml"
    source = CHAT_TEMPLATE

    def __init__(self, tokenizer: Tokenizer, turn_start: int, turn_end: int) -> None:
        self._tokenizer = tokenizer
        self.turn_start = turn_start
        self.turn_end = turn_end
        self.user_turn = (turn_start, *tokenizer.encode("user\n"))

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> Iterable[Rendered]:
        """Each conversation; all contents are encoded in one parallel call."""
        pieces = [
            piece
            for messages in conversations
            for message in messages
            for piece in (f"{message.role}\n", message.content.strip())
        ]
        encoded = iter(self._tokenizer.encode_batch(pieces))
        newline = self._tokenizer.encode("\n")
        for messages in conversations:
            ids: list[int] = []
            weights: list[int] = []
            for message in messages:
                header, content = next(encoded), next(encoded)
                learned = int(message.role == "assistant" and message.weight)
                ids += [self.turn_start, *header, *content, self.turn_end]
                weights += [0] * (1 + len(header)) + [learned] * (len(content) + 1)
                ids += newline
                weights += [0] * len(newline)
            yield Rendered(ids, weights)

    def refusal(self, messages: Sequence[Message]) -> None:
        """ChatML takes turns in any order."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The turns, and the opening of the reply."""
        turns = next(iter(self.render_batch([messages])))
        return [*turns.ids, self.turn_start, *self._tokenizer.encode("assistant\n")]


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """The ids a model is trained on for these turns. Raises UsageError when the tokenizer has no
    chat template or the template does not take these turns, IntegrityError when it is hostile."""
    return next(iter(render_batch(tokenizer, [messages])))


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> Iterable[Rendered]:
    """`render` of each."""
    return tokenizer.template.render_batch(conversations) if conversations else ()


def reply_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids after which the model writes the assistant's next reply. Raises as `render`."""
    return tokenizer.template.prompt(messages)


def render_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[Rendered]:
    """Plain documents: every token and the end of the text are learned."""
    for content in tokenizer.encode_batch(texts):
        ids = [*content, tokenizer.end_of_text]
        yield Rendered(ids, [1] * len(ids))
