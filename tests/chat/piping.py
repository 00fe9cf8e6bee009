"""What the tests of pipes share."""

from __future__ import annotations

from typing import Any

import pytest

from chatbench.chat.asking import Asker
from chatbench.engine import shift
from chatbench.engine.engine import Engine
from chatbench.model.folder import OpenedModel
from chatbench.settings import SamplingSettings

GREEDY = SamplingSettings(temperature=0.0, max_tokens=4)
# Flat enough that another seed gives another text.
WILD = SamplingSettings(temperature=2.0, top_k=0, top_p=1.0, max_tokens=12)


def asker(
    opened: OpenedModel, sampling: SamplingSettings = GREEDY, rows: int = 3, **given: Any
) -> Asker:
    """As the command line makes one."""
    return Asker(Engine(opened.model, opened.tokenizer, rows), sampling, model="m", **given)


def say_always(monkeypatch: pytest.MonkeyPatch, opened: OpenedModel, text: str) -> None:
    """From now on the model writes this, one row at a time."""
    ids = [*opened.tokenizer.encode(text), opened.tokenizer.turn_end]
    left: list[int] = []

    def choose(scores: object, samplings: list[object], *_: object) -> list[int]:
        nonlocal left
        assert len(samplings) == 1
        left = left or list(ids)
        return [left.pop(0)]

    monkeypatch.setattr(shift, "choose_rows", choose)
