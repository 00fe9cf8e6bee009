"""Prompts out of a corpus, and what the model as it stands replies to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from chatbench.corpus.shards import TokenSplit
from chatbench.engine.engine import Engine, Request
from chatbench.errors import IntegrityError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.storage import new_folder, remove_folder, verify, write_json
from chatbench.text.tags import lines_of
from chatbench.text.tokenizer import Tokenizer

KIND = "rollouts"
FOLDER = "rollouts"
# The extension of the engine takes so many rows in one step.
_ROWS_ON_CPU = 16
_ROWS_ON_GPU = 256


class Task(NamedTuple):
    """A conversation without its last reply, as ids and as text; `reference`: that reply."""

    ids: list[int]
    prompt: str
    reference: str


class Tasks:
    """The conversations of a split whose prompt leaves room for a reply, by number; `longest`
    prompt, in tokens; `skipped`: conversations that are too long."""

    def __init__(self, split: TokenSplit, tokenizer: Tokenizer, room: int) -> None:
        """`room`: the most tokens that a prompt may have."""
        self._split = split
        self._tokenizer = tokenizer
        self._places: list[tuple[int, int, int]] = []
        self.longest = self.skipped = 0
        for number in range(len(split)):
            reply = _last_reply(split, number)
            if reply is None:
                continue
            if reply[0] > room:
                self.skipped += 1
                continue
            self._places.append((number, *reply))
            self.longest = max(self.longest, reply[0])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Task:
        document, begin, end = self._places[number]
        ids = self._split.ids(document)[:end].tolist()
        decode = self._tokenizer.decode
        prompt = lines_of(self._tokenizer, ids[:begin]).strip()
        return Task(ids[:begin], prompt, decode(ids[begin:]).strip())


def _last_reply(split: TokenSplit, number: int) -> tuple[int, int] | None:
    """Begin and end of the last run of learned tokens; None in plain texts, which begin with one,
    and where nothing is learned."""
    learned = np.flatnonzero(split.weights(number))
    if not len(learned) or not learned[0]:
        return None
    gaps = np.flatnonzero(np.diff(learned) > 1)
    begin = learned[gaps[-1] + 1] if len(gaps) else learned[0]
    return int(begin), int(learned[-1]) + 1


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """`ids`: the tokens that were drawn, the one that ended the reply among them; `truncated`:
    there was none, the reply was cut off at its longest."""

    ids: list[int]
    text: str
    truncated: bool


class Speaker:
    """Replies of a model that learns in between."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._engine: Engine | None = None

    def replies(
        self, prompts: Sequence[list[int]], sampling: SamplingSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:  # fmt: skip
        """One reply to each prompt, drawn with its seed by the weights of now."""
        if self._engine is None:  # not before: the number format of the weights may have changed
            on_cpu = self._model.model.embed_tokens.weight.device.type == "cpu"
            rows = _ROWS_ON_CPU if on_cpu else _ROWS_ON_GPU
            self._engine = Engine(self._model, self._tokenizer, rows)
        self._engine.forget()
        each = [sampling] * len(prompts)
        if seeds is not None:
            each = [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]
        requests = [Request(ids, own) for ids, own in zip(prompts, each, strict=True)]
        found = []
        for done in self._engine.complete(requests):
            said = done.ids if done.ended is None else [*done.ids, done.ended]
            found.append(Reply(said, done.text.strip(), done.ended is None))
        return found


def seed_of(seed: int, *numbers: int) -> int:
    """The seed of one sample: a function of the run's and of which set, prompt and sample it is."""
    drawn = np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0]
    return int(drawn) >> 2  # seeds end at 2**62


class Rollouts(msgspec.Struct, frozen=True):
    """Replies that one step or several learn from, group by group: `tasks` (P,) by number,
    `replies` (P·G,) and what each is worth, `worths` (P·G, rewards). `before` and `reference`: the
    log-probabilities of each drawn token by the weights that drew it and by those of the start,
    where they are asked for."""

    tasks: list[int]
    replies: list[Reply]
    worths: list[list[float]]
    before: list[list[float]] | None = None
    reference: list[list[float]] | None = None


class Shelf:
    """Rollouts kept beside a run where several steps learn from them: a resume between those steps
    cannot draw them again, for the weights have moved on.

    Kept is what the checkpoints in `run` may ask for, sets by number, each for `updates` steps.
    """

    def __init__(self, run: Path, updates: int) -> None:
        self._run = run
        self._updates = updates

    def put(self, number: int, rollouts: Rollouts) -> None:
        """Write a set. Raises EnvironmentFault for disk trouble."""
        place = self._place(number)
        place.parent.mkdir(exist_ok=True)
        with new_folder(place, KIND, replace=True) as folder:
            write_json(folder / "rollouts.json", rollouts)
        self._drop()

    def get(self, number: int) -> Rollouts:
        """Read a set. Raises IntegrityError unless it is there and whole."""
        place = self._place(number)
        if not place.is_dir():
            raise IntegrityError(
                f"{place} is missing, from which the run was learning", hint="begin the run anew"
            )
        verify(place, KIND)
        try:
            return msgspec.json.decode((place / "rollouts.json").read_bytes(), type=Rollouts)
        except (OSError, msgspec.DecodeError) as error:
            raise IntegrityError(f"{place} cannot be read: {error}") from error

    def _place(self, number: int) -> Path:
        return self._run / FOLDER / f"set-{number:08d}"

    def _drop(self) -> None:
        """All sets older than the newest checkpoint but those inside of which a checkpoint lies."""
        steps = [int(path.name[5:]) for path in (self._run / "checkpoints").glob("step-*")]
        needed = {step // self._updates for step in steps}
        for path in (self._run / FOLDER).glob("set-*"):
            number = int(path.name[4:])
            if number < max(needed, default=0) and number not in needed:
                remove_folder(path)
