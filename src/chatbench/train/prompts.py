"""What learning from rewards begins with: prompts, rewards, and a plan that fits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chatbench import console
from chatbench.corpus.columns import tag_columns
from chatbench.errors import DataError, UsageError
from chatbench.settings import FinetuneSettings, TrainSettings
from chatbench.text.tags import read_known
from chatbench.train.dialogues import is_corpus, sources_of
from chatbench.train.grpo import Grpo
from chatbench.train.material import Given
from chatbench.train.parallel import World
from chatbench.train.plan import Plan
from chatbench.train.rewards import Reward, Weighted, parse_rewards
from chatbench.train.rollouts import Shelf, Speaker, Tasks
from chatbench.train.tag_reward import TagRewards, check_column


def check_rewards(settings: FinetuneSettings) -> None:
    """Raises UsageError for rewards that are none, before any work: of the data only what corpus
    folders note of their tags is read."""
    if settings.objective != "grpo":
        return
    columns = tag_columns(settings.tag_column)
    places = [Path(source.place) for source in sources_of(settings.data)]
    for place in places:
        columns += read_known(place) if is_corpus(place) else ()

    def of_tag(column: str) -> Reward:
        if not column or all(place.exists() for place in places):  # what is not there is told later
            check_column(column, columns)
        return lambda exchange: 0.0

    parse_rewards(settings.grpo.reward, of_tag)


def grpo(given: Given) -> Prompts:
    """The conversations without their last replies. How much a step is follows from them and is
    written into the settings.

    Raises UsageError for rewards that are none and lengths that do not fit, DataError where nothing
    can be answered.
    """
    settings, tokenizer = given.settings.grpo, given.corpus.tokenizer
    room = given.seq_len - settings.max_new_tokens
    if room < 1:
        raise UsageError(
            f"replies of {settings.max_new_tokens} tokens leave no room for a prompt in the "
            f"{given.seq_len} of a row",
            hint="lower --max-new-tokens",
        )
    tasks, held = (Tasks(given.corpus.split(name), tokenizer, room) for name in ("train", "val"))
    of_tag = TagRewards(given.corpus.tags(), tasks)
    rewards = parse_rewards(settings.reward, of_tag)
    if tasks.skipped:
        console.notice(
            f"{console.counted(tasks.skipped, 'conversation is', 'conversations are')} left out: "
            f"prompt and a reply of {settings.max_new_tokens} tokens do not fit into "
            f"{given.seq_len}"
        )
    if not len(tasks):
        raise DataError("no conversation has a prompt to reply to")
    if not len(held):
        console.notice("no prompt is held out, so nothing says which step is the best")
    prompts = Prompts(given, tasks, held, rewards)
    _fix_batch(
        given.settings.train, prompts.row_len, settings.prompts_per_step * settings.group_size
    )
    return prompts


def _fix_batch(train: TrainSettings, row_len: int, rows: int) -> None:
    """A step is as many rows as there are replies, however few prompts there are."""
    if train.batch_tokens not in (None, rows * row_len):
        raise UsageError(
            f"--batch-tokens {train.batch_tokens} does not fit a step of {rows} replies",
            hint="leave it out: --prompts-per-step and --group-size say how much a step is",
        )
    train.batch_tokens = rows * row_len


@dataclass(frozen=True)
class Prompts:
    """Prompts to learn from and prompts held out.

    `rate`: at more of the usual learning rate replies soon become all alike, right or not
    (tests/bench/grpo.py).
    """

    rate = 0.3
    given: Given
    tasks: Tasks
    held: Tasks
    rewards: list[Weighted]

    @property
    def row_len(self) -> int:
        """Tokens of the longest prompt and the longest reply."""
        longest = max(self.tasks.longest, self.held.longest)
        return longest + self.given.settings.grpo.max_new_tokens

    def count(self) -> int:
        """Replies of an epoch, each as often as steps learn from it."""
        settings = self.given.settings.grpo
        return len(self.tasks) * settings.group_size * settings.updates

    def objective(self, plan: Plan, ranks: World) -> Grpo:
        """Raises UsageError where several ranks cannot do what is asked."""
        settings, model = self.given.settings.grpo, self.given.model
        if ranks.size > 1:
            self._check(ranks)
        speaker = Speaker(model, self.given.corpus.tokenizer)
        shelf = Shelf(self.given.place, settings.updates) if settings.updates > 1 else None
        return Grpo(
            model, speaker, self.tasks, self.held, self.rewards, settings, rows=plan.micro_batch,
            seed=self.given.settings.seed, shelf=shelf, ranks=ranks,
        )  # fmt: skip

    def _check(self, ranks: World) -> None:
        settings = self.given.settings
        if settings.train.parallel != "ddp":
            raise UsageError(
                "on several ranks --objective grpo needs the whole model on each",
                hint="add --parallel ddp",
            )
        if settings.grpo.updates > 1:
            raise UsageError("on several ranks --updates can only be 1", hint="leave --updates out")
        if settings.grpo.prompts_per_step % ranks.size:
            raise UsageError(
                f"--prompts-per-step {settings.grpo.prompts_per_step} cannot be shared by "
                f"{ranks.size} ranks evenly",
                hint=f"choose a multiple of {ranks.size}",
            )
