"""What a run learns from, as its objective sees it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from chatbench.corpus.shards import Corpus
from chatbench.model.transformer import GPT
from chatbench.settings import FinetuneSettings
from chatbench.train.objective import Objective
from chatbench.train.parallel import World
from chatbench.train.plan import Plan


class Given(NamedTuple):
    """What a finetune begins with. `model`: the base, on its device, with its adapter if it gets
    one; `place`: the run folder, for what is kept beside the run (a folder that vanishes, in a dry
    run and on ranks other than the first)."""

    settings: FinetuneSettings
    corpus: Corpus
    model: GPT
    seq_len: int
    place: Path


class Material(Protocol):
    """A corpus as one objective sees it.

    It may also have `row_len`, places of a row where they are not `seq_len`; and defaults of its
    own: `batch_tokens`, `epochs`, and `rate`, a multiple of the usual learning rate.
    """

    def count(self) -> int:
        """Rows of an epoch."""

    def objective(self, plan: Plan, ranks: World) -> Objective:
        """What is minimised over it."""
