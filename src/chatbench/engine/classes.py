"""Which of several labels a text has, and how sure a model is: by a head made for it, or by how
likely each label is as the reply of a chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbench.conversation import Message
from chatbench.engine.choosing import choice_logprobs, reply_ids
from chatbench.engine.engine import Engine
from chatbench.errors import UsageError
from chatbench.model.attention import Packing
from chatbench.model.config import Pooling
from chatbench.model.folder import OpenedModel
from chatbench.model.pooling import pooled
from chatbench.model.transformer import GPT
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer

# Of a text that is too long its beginning and its end are read, as that did best for long reviews
# (Sun et al. 2019, "How to fine-tune BERT for text classification?", 5.3).
_BEGINNING = 0.25


class Read(NamedTuple):
    """What of a text is read; `cut`: whether it was too long to be read whole."""

    ids: list[int]
    cut: bool


class Judge(Protocol):
    """Gives labels to texts. `cut`: how many texts were too long to be read whole so far."""

    labels: tuple[str, ...]
    cut: int

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(texts, labels) float64, each row adds up to 1; a function of each text alone but for
        rounding."""


def shortened(ids: Sequence[int], room: int) -> list[int]:
    """At most `room` ids: of more, the first quarter and the last three quarters of the room."""
    if len(ids) <= room:
        return list(ids)
    first = int(room * _BEGINNING)
    return [*ids[:first], *ids[len(ids) - (room - first) :]]


def class_ids(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> Iterator[Read]:
    """What a head reads of each text, at most `room` ids: what other programs make of it by this
    tokenizer alone, or the end of a text where that is nothing. Outer white space does not count.
    """
    end = (tokenizer.end_of_text,)
    # Nothing but its tokenizer tells transformers what to put before a text.
    prefix = [] if tokenizer.text_prefix == end else list(tokenizer.text_prefix)
    for ids in tokenizer.encode_batch([text.strip() for text in texts]):
        kept = shortened(ids, room - len(prefix))
        # Some tokenizers have no token for a character that they never met.
        yield Read([*prefix, *kept] or [*end], len(kept) < len(ids))


@torch.no_grad()  # not in inference mode: what is kept of rotary positions serves training too
def text_states(
    model: GPT, sequences: Sequence[Sequence[int]], batch_size: int, pooling: Pooling
) -> Tensor:
    """What of the final norm's output a head sees (N, C) of each sequence, none of them empty."""
    weight = model.model.embed_tokens.weight
    device = weight.device
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    found: list[Tensor] = []
    for begin in range(0, len(order), batch_size):
        some = [sequences[number] for number in order[begin : begin + batch_size]]
        width = max(map(len, some))
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in some], device=device)
        lengths = torch.tensor([len(ids) for ids in some], device=device)
        ends = torch.arange(len(some), device=device) * width + lengths - 1
        packing = None  # where nobody looks ahead, padding at the end is not seen
        if not model.config.causal:
            place = torch.arange(width, device=device).expand(len(some), -1)
            packing = Packing((place < lengths[:, None]).long(), place)
        found.append(pooled(model(padded, packing), ends, lengths, pooling))
    if not found:
        return weight.new_empty(0, model.config.hidden_size)
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(found)[back.to(device)]


class HeadJudge:
    """By the head of a classifier."""

    def __init__(self, opened: OpenedModel, batch_size: int) -> None:
        self.labels = opened.model.config.labels
        self.cut = 0
        self._model, self._tokenizer = opened.model, opened.tokenizer
        self._batch_size = batch_size

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        read = list(class_ids(self._tokenizer, texts, self._model.config.context))
        self.cut += sum(each.cut for each in read)
        with torch.no_grad():
            states = text_states(
                self._model, [each.ids for each in read], self._batch_size,
                self._model.config.pooling,
            )  # fmt: skip
            return self._model.logits(states).double().softmax(-1).cpu()


class ChoiceJudge:
    """By the chances of each label as the whole reply of a chat model."""

    def __init__(
        self, opened: OpenedModel, labels: Sequence[str], batch_size: int,
        system: str | None = None,
    ) -> None:  # fmt: skip
        """Raises UsageError for labels that are empty, named twice or cannot be written, and when
        the model has no chat template."""
        self.labels = tuple(labels)
        self.cut = 0
        self._engine = Engine(opened.model, opened.tokenizer, batch_size)
        self._tokenizer = opened.tokenizer
        self._opening = [Message("system", system)] if system else []
        if len({label.strip() for label in labels}) < max(2, len(labels)):
            raise UsageError("there must be two choices or more, all different")
        self._spelled = [reply_ids(opened.tokenizer, label) for label in labels]
        self._room = self._engine.context - max(map(len, self._spelled)) - 1
        if self._room - len(self._prompt("")) < 1:
            raise UsageError(
                f"the model's context of {self._engine.context} tokens does not hold the longest "
                "choice and a text",
                hint="name shorter choices, or shorten --system",
            )

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        rows = [choice_logprobs(self._engine, self._fitting(text), self._spelled) for text in texts]
        chances = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.labels))
        return chances.softmax(-1)

    def _prompt(self, text: str) -> list[int]:
        return reply_prompt(self._tokenizer, [*self._opening, Message("user", text)])

    def _fitting(self, text: str) -> list[int]:
        """The prompt of a text, or of as much of its beginning and end as there is room for."""
        prompt = self._prompt(text)
        if len(prompt) <= self._room:
            return prompt
        self.cut += 1
        ids = self._tokenizer.encode(text)
        room = self._room - len(self._prompt(""))
        while len(prompt) > self._room:
            # Cut texts may take other tokens than they were cut from.
            prompt = self._prompt(self._tokenizer.decode(shortened(ids, room)))
            room = max(0, room - max(1, len(prompt) - self._room))
        return prompt


def judge_of(
    opened: OpenedModel, choices: Sequence[str], batch_size: int, system: str | None = None
) -> Judge:
    """By what the model is and what was asked. Raises UsageError when there are no labels, or
    choices beside a head."""
    if not opened.model.config.labels:
        if not choices:
            raise UsageError(
                f"{opened.folder} is no classifier",
                hint="name the labels by --choice, or train one: finetune --objective classify",
            )
        return ChoiceJudge(opened, choices, batch_size, system)
    if choices or system:
        name = "--choice" if choices else "--system"
        raise UsageError(
            f"{opened.folder} is a classifier and takes no {name}", hint="leave it out"
        )
    return HeadJudge(opened, batch_size)
