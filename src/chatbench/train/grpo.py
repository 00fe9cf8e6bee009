"""Learning from rewards: group-relative policy gradients (GRPO, Shao et al. 2024).

To each prompt the model replies several times; a reply that is worth more than its group's mean is
made likelier, token by token, and one that is worth less the opposite. Every token of a step counts
the same (DAPO, Yu et al. 2025), for with a mean over each reply first long ones would be held to
less. Advantages are not divided by their group's deviation unless asked for (Dr. GRPO, Liu et al.
2025): that would give most weight to prompts that are nearly always or nearly never answered well.
Legend: P prompts of a step, G replies to each, B rows of a micro-batch, T its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

import msgspec
import torch

from chatbench.model.transformer import GPT
from chatbench.settings import GrpoSettings, SamplingSettings
from chatbench.train.batches import permutation
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.parallel import SOLO, World
from chatbench.train.policy import (
    Start,
    advantages,
    beside_others,
    deviation,
    distance,
    drawn_logprobs,
    is_clipped,
    surrogate,
)
from chatbench.train.rewards import Exchange, Weighted, total
from chatbench.train.rollouts import Reply, Rollouts, Shelf, Speaker, Task, Tasks, seed_of

# Of a row, as they lie in `more["facts"]`; each reward follows.
_FACTS = ("replies", "drawn", "reward", "spread", "silent", "truncated", "reply_tokens")
# Of the drawn tokens of a micro-batch.
_SUMS = ("surprise", "clipped", "kl")


class Grpo:
    """Draws replies by the weights as they stand, judges them, and learns from the differences.

    `model` is the one that learns; its speaker's too.
    """

    of_text = False
    on_policy = True

    def __init__(
        self, model: GPT, speaker: Speaker, tasks: Tasks, held: Tasks, rewards: Sequence[Weighted],
        settings: GrpoSettings, *, rows: int, seed: int = 0, shelf: Shelf | None = None,
        ranks: World = SOLO,
    ) -> None:  # fmt: skip
        """`rows` of a micro-batch; `shelf`: where replies lie that several steps learn from."""
        self._model, self._speaker = model, speaker
        self._tasks, self._held = tasks, held
        self._rewards, self._settings = rewards, settings
        self._rows, self._seed, self._shelf, self._ranks = rows, seed, shelf, ranks
        self._start = Start(model) if settings.kl_coef else None
        self._range = settings.clip_range, settings.clip_range_high or settings.clip_range
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(tasks)))
        self._drawn: tuple[int, Rollouts] | None = None
        self.summed = (*_FACTS, *(f"reward_{each.name}" for each in rewards), *_SUMS)

    # ---- what a step learns from

    def batch(self, step: int) -> GlobalBatch:
        """Replies by the weights of now, or by those of an earlier step where several learn from
        the same; drawn once, however often they are asked for. Of several ranks each takes its own
        prompts; `weight` and `tokens` are those of all."""
        number, again = divmod(step, self._settings.updates)
        if self._drawn is None or self._drawn[0] != number:
            if again:
                assert self._shelf is not None
                self._drawn = number, self._shelf.get(number)
            else:
                self._drawn = number, self._draw(number)
        rollouts = self._drawn[1]
        if not again:  # the ratio is exactly one then, whatever rounding says
            rollouts = msgspec.structs.replace(rollouts, before=None)
        parts = self._parts(rollouts)
        drawn = sum(len(reply.ids) for reply in rollouts.replies)
        read = sum(len(self._tasks[task].ids) for task in rollouts.tasks)
        weight, tokens = self._ranks.sums(
            (float(drawn), float(drawn + read * self._settings.group_size))
        )
        return GlobalBatch(parts, weight, int(tokens))

    def _draw(self, number: int) -> Rollouts:
        """Set `number`: prompts number·P .. of the endless sequence of epochs."""
        settings, ranks = self._settings, self._ranks
        first = number * settings.prompts_per_step
        mine = range(ranks.rank, settings.prompts_per_step, ranks.size)
        places = [divmod(first + place, len(self._tasks)) for place in mine]
        chosen = [int(self._order(epoch)[at]) for epoch, at in places]
        group = range(settings.group_size)
        prompts = [self._tasks[task] for task in chosen for _ in group]
        replies = self._speaker.replies(
            [prompt.ids for prompt in prompts],
            SamplingSettings(
                temperature=settings.temperature, top_k=0, max_tokens=settings.max_new_tokens,
                top_p=1.0,
            ),
            [seed_of(self._seed, number, place, sample) for place in mine for sample in group],
        )  # fmt: skip
        worths = [self._worths(*pair) for pair in zip(prompts, replies, strict=True)]
        rollouts = Rollouts(chosen, replies, worths)
        if self._start is not None:
            with self._start.model() as model:
                rollouts = msgspec.structs.replace(rollouts, reference=self._read(model, rollouts))
        if settings.updates > 1:
            assert self._shelf is not None
            before = self._read(self._model, rollouts)
            rollouts = msgspec.structs.replace(rollouts, before=before)
            self._shelf.put(number, rollouts)
        return rollouts

    def _worths(self, task: Task, reply: Reply) -> list[float]:
        exchange = Exchange(task.prompt, reply.text, task.reference)
        return [each.worth(exchange) for each in self._rewards]

    @torch.no_grad()
    def _read(self, model: GPT, rollouts: Rollouts) -> list[list[float]]:
        """Log-probabilities of each reply's tokens by `model`, in the order of the replies."""
        found: list[list[float]] = [[] for _ in rollouts.replies]
        device = self._model.model.embed_tokens.weight.device
        for chosen, part in zip(self._chunks(rollouts), self._parts(rollouts), strict=True):
            flat = drawn_logprobs(model, part.to(device), self._settings.temperature).tolist()
            values = iter(flat)
            for reply in chosen:
                found[reply] = list(islice(values, len(rollouts.replies[reply].ids)))
        return found

    def _chunks(self, rollouts: Rollouts) -> list[list[int]]:
        """Replies of each micro-batch: those of like length together, since all are padded."""
        group = self._settings.group_size
        lengths = [
            len(self._tasks[rollouts.tasks[number // group]].ids) + len(reply.ids)
            for number, reply in enumerate(rollouts.replies)
        ]
        order = sorted(range(len(lengths)), key=lambda number: lengths[number])
        return [order[at : at + self._rows] for at in range(0, len(order), self._rows)]

    def _parts(self, rollouts: Rollouts) -> list[Batch]:
        worth = [total(self._rewards, worths) for worths in rollouts.worths]
        gains, facts = self._judged(worth, rollouts)
        return [self._part(rollouts, chosen, gains, facts) for chosen in self._chunks(rollouts)]

    def _judged(
        self, worth: list[float], rollouts: Rollouts
    ) -> tuple[list[float], list[list[float]]]:
        """The advantage of each reply, and what is to be told of it."""
        group = self._settings.group_size
        if group == 1:
            everyone = self._of_all_ranks(worth)
            gains = beside_others(everyone)[self._ranks.rank :: self._ranks.size]
            groups = [everyone] * len(worth)
        else:
            gains = advantages(worth, group, scaled=self._settings.scale_rewards == "group")
            groups = [worth[n - n % group :][:group] for n in range(len(worth))]
        facts = [
            [1.0, 1.0, worth[n], deviation(own), float(min(own) == max(own)),
             float(reply.truncated), float(len(reply.ids)), *rollouts.worths[n]]
            for n, (own, reply) in enumerate(zip(groups, rollouts.replies, strict=True))
        ]  # fmt: skip
        return gains, facts

    def _of_all_ranks(self, worth: list[float]) -> list[float]:
        """One number for each prompt of the step."""
        rank, size = self._ranks.rank, self._ranks.size
        whole = [0.0] * (len(worth) * size)
        whole[rank::size] = worth
        return self._ranks.sums(whole)

    def _part(
        self, rollouts: Rollouts, chosen: list[int], gains: list[float], facts: list[list[float]]
    ) -> Batch:
        group = self._settings.group_size
        prompts = [self._tasks[rollouts.tasks[number // group]].ids for number in chosen]
        replies = [rollouts.replies[number].ids for number in chosen]
        whole = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        width = max(map(len, whole)) - 1
        ids, targets = torch.zeros(2, len(whole), width, dtype=torch.int64)
        weights = torch.zeros(len(whole), width)
        columns = {"before": rollouts.before, "reference": rollouts.reference}
        wide = torch.promote_types(self._model.model.embed_tokens.weight.dtype, torch.float32)
        more = {n: torch.zeros(weights.shape, dtype=wide) for n, held in columns.items() if held}
        for row, (number, tokens) in enumerate(zip(chosen, whole, strict=True)):
            begin, end = len(prompts[row]) - 1, len(tokens) - 1
            ids[row, :end] = torch.tensor(tokens[:-1])
            targets[row, :end] = torch.tensor(tokens[1:])
            weights[row, begin:end] = 1.0
            for name, tensor in more.items():
                held = columns[name]
                assert held is not None
                tensor[row, begin:end] = torch.tensor(held[number], dtype=wide)
        more["advantage"] = torch.tensor([gains[number] for number in chosen], dtype=wide)
        more["facts"] = torch.tensor([facts[number] for number in chosen], dtype=wide)
        return Batch(ids, targets, weights, None, more=more)

    # ---- the loss

    def loss(self, model: GPT, batch: Batch) -> Loss:
        """Of drawn replies the clipped policy gradient; of held-out prompts, minus the reward."""
        batch = batch.counted()
        settings, more = self._settings, batch.more
        assert more is not None
        assert batch.places is not None
        if "held" in more:
            return self._answered(more["held"].tolist())
        logprobs = drawn_logprobs(model, batch, settings.temperature)
        gains = more["advantage"][batch.places // batch.ids.shape[1]]
        before = logprobs.detach()
        sums = [-before.sum()]
        if "before" in more:
            before = more["before"].flatten()[batch.places]
        losses = -surrogate(logprobs, before, gains, *self._range)
        sums.append(is_clipped(logprobs.detach(), before, gains, *self._range).sum())
        if "reference" in more:
            distances = distance(logprobs, more["reference"].flatten()[batch.places])
            losses = losses + settings.kl_coef * distances
            sums.append(distances.detach().sum())
        told = len(self.summed) - len(_SUMS)
        figures = torch.cat([more["facts"][:, :told].sum(0), torch.stack(sums).to(gains)])
        metrics = dict(zip(self.summed, figures.tolist(), strict=False))
        return Loss(losses.sum(), batch.weight, metrics)

    def _answered(self, numbers: list[int]) -> Loss:
        """Minus the rewards of the likeliest replies to held-out prompts."""
        tasks = [self._held[number] for number in numbers]
        greedy = SamplingSettings(temperature=0.0, max_tokens=self._settings.max_new_tokens)
        replies = self._speaker.replies([task.ids for task in tasks], greedy)
        worths = [self._worths(*pair) for pair in zip(tasks, replies, strict=True)]
        worth = sum(total(self._rewards, each) for each in worths)
        metrics = {
            "replies": float(len(replies)),
            "reward": worth,
            "truncated": float(sum(reply.truncated for reply in replies)),
            "reply_tokens": float(sum(len(reply.ids) for reply in replies)),
        }
        for each, own in zip(self._rewards, zip(*worths, strict=True), strict=True):
            metrics[f"reward_{each.name}"] = sum(own)
        return Loss(torch.tensor(-worth), float(len(replies)), metrics)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over replies, and over drawn tokens where some were drawn."""
        replies, tokens = sums.get("replies"), sums.get("reply_tokens")
        if not replies:
            return {}
        names = ["reward", "truncated", "reply_tokens"]
        if len(self._rewards) > 1:
            names += [f"reward_{each.name}" for each in self._rewards]
        found = {name: sums[name] / replies for name in names}
        if tokens and sums.get("drawn"):
            found["reward_spread"] = sums["spread"] / replies
            found["silent_groups"] = sums["silent"] / replies
            found["entropy"] = sums["surprise"] / tokens
            if self._settings.updates > 1:
                found["clipped"] = sums["clipped"] / tokens
            if self._start is not None:
                found["kl"] = sums["kl"] / tokens
        return found

    def validation(self) -> Iterator[Batch]:
        """Held-out prompts, the first of them, always the same."""
        count = min(len(self._held), self._settings.eval_prompts)
        for begin in range(0, count, self._rows):
            numbers = list(range(begin, min(begin + self._rows, count)))
            prompts = [self._held[number].ids for number in numbers]
            ids = torch.zeros(len(numbers), max(map(len, prompts)), dtype=torch.int64)
            for row, prompt in enumerate(prompts):
                ids[row, : len(prompt)] = torch.tensor(prompt)
            yield Batch(
                ids, ids, torch.zeros(ids.shape), None, more={"held": torch.tensor(numbers)}
            )
