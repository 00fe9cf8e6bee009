"""What a reply may be: the tokens allowed next move with those already said.

A constraint belongs to no reply: `begin` gives the state before the first token, states are values,
and what is worked out for one row serves all.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from chatbench.errors import UsageError


class Mask(NamedTuple):
    """Both (V,) bool. `cut`: of what is forbidden, that which is so only because few tokens are
    left; None when that is nothing."""

    forbidden: Tensor
    cut: Tensor | None


class Constraint(Protocol):
    """A reply must be allowed `room` tokens, its end not counted."""

    room: int

    def begin(self) -> Hashable:
        """The state of an empty reply."""

    def mask(self, state: Any, left: int) -> Mask:
        """What may be said by a reply that may take `left` more tokens, so that it can still
        be whole at the end. End tokens are allowed where it is whole."""

    def after(self, state: Any, number: int) -> Hashable:
        """The state behind an allowed id."""

    def ended(self, state: Any) -> bool:
        """Whether the reply is whole and nothing may follow."""


def require_room(constraint: Constraint, left: int) -> None:
    """Raise UsageError when a reply may not have as many tokens as it must."""
    if constraint.room > left:
        raise UsageError(
            f"a reply of this form needs {constraint.room} tokens, and there is room for {left}",
            hint="raise max_tokens, shorten the prompt, or ask for less",
        )


class _Node:
    """A place in the tree of ids that choices make."""

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.whole = False
        self.mask: Mask | None = None


class Choices:
    """One of several replies, `choices` by text with the ids that write them, then an end token
    from `stops`; `size` is the vocabulary's.

    One spelling of each: the ids the tokenizer gives, which are those the model has learned. Other
    cuts of the same text would make a choice likelier by how many ways there are to cut it, and
    lead a sure model astray after a first piece that several choices share.
    Raises UsageError for an empty choice, for two that are the same, and when there is none.
    """

    def __init__(
        self, choices: Mapping[str, Sequence[int]], size: int, stops: Collection[int]
    ) -> None:
        if not choices or not all(choices.values()):
            raise UsageError("there is an empty choice, or none at all", hint="name each by text")
        self.choices = dict(choices)
        self.room = max(map(len, choices.values()))
        self._root = _Node()
        self._size = size
        self._stops = sorted(stops)
        for text, ids in choices.items():
            node = self._root
            for number in ids:
                node = node.children.setdefault(number, _Node())
            if node.whole:
                raise UsageError(f"{text} is there twice among the choices", hint="leave one out")
            node.whole = True

    def begin(self) -> _Node:
        return self._root

    def mask(self, state: _Node, left: int) -> Mask:
        if state.mask is None:
            forbidden = torch.ones(self._size, dtype=torch.bool)
            forbidden[[*state.children, *(self._stops if state.whole else [])]] = False
            state.mask = Mask(forbidden, None)
        return state.mask

    def after(self, state: _Node, number: int) -> _Node:
        return state.children[number]

    def ended(self, state: _Node) -> bool:
        return state.whole and not state.children
