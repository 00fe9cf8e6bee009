"""Who is missing, who hangs, and for how long a rank may be busy."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chatbench.errors import ExitCode
from chatbench.train.parallel_watch import Beat, Seen, judge

NOW = 5000.0


def ranks(**changes: Any) -> dict[int, Seen]:
    """Three ranks that beat half a second ago and got on a second ago, at step 7."""
    fresh, moved = changes.get("fresh", {}), changes.get("moved", {})
    return {
        rank: Seen(
            Beat(100, changes.get("moves", {}).get(rank, 50), 7,
                 changes.get("doing", {}).get(rank, "training")),
            NOW - fresh.get(rank, 0.5), NOW - moved.get(rank, 1.0),
        )
        for rank in range(3)
    }  # fmt: skip


def verdict(rank: int, seen: dict[int, Seen], talked: float = 0.5, longest: float = 0.2) -> Any:
    return judge(NOW, seen, NOW - talked, rank=rank, silence=20.0, longest=longest)


def test_nothing_is_said_of_ranks_that_get_on(rng: random.Random) -> None:
    seen = ranks(fresh={r: rng.uniform(0, 19) for r in range(3)},
                 moved={r: rng.uniform(0, 24) for r in range(3)})  # fmt: skip
    assert all(verdict(rank, seen) is None for rank in range(3))


@pytest.mark.parametrize("dead", [{0}, {1}, {2}, {0, 2}])
def test_a_silent_rank_is_named_once_by_the_first_that_lives(dead: set[int]) -> None:
    seen = ranks(fresh=dict.fromkeys(dead, 20.5))
    living = sorted({0, 1, 2} - dead)
    said = [verdict(rank, seen) for rank in living]
    assert all(each.code == ExitCode.LOST == 8 for each in said)
    names = "ranks 0, 2" if len(dead) == 2 else f"rank {dead.copy().pop()}"
    assert said[0].words.startswith(f"{names} died or froze at step 7; ")
    assert "--resume" in said[0].words
    assert all(each.words is None for each in said[1:])


def test_a_rank_without_the_store_says_so_itself() -> None:
    for rank in range(3):
        found = verdict(rank, ranks(), talked=20.5)
        assert found.code == 8
        assert "rank 0, or the way to it, is lost at step 7" in found.words


def test_the_rank_that_fell_behind_is_the_one_that_hangs() -> None:
    seen = ranks(moved=dict.fromkeys(range(3), 26.0), moves={1: 49})
    assert verdict(0, seen).words.startswith("rank 1 hung at step 7 for 25 s; ")
    assert verdict(1, seen).words is None
    # As long as one of them moves, the others wait for it.
    assert verdict(0, ranks(moved={0: 26.0, 1: 3.0, 2: 26.0})) is None


@pytest.mark.parametrize(("longest", "patience"), [(0.1, 25.0), (2.5, 25.0), (9.0, 90.0)])
def test_patience_follows_the_longest_step(longest: float, patience: float) -> None:
    for standing, hangs in ((patience - 0.5, False), (patience + 0.5, True)):
        seen = ranks(moved=dict.fromkeys(range(3), standing))
        assert (verdict(0, seen, longest=longest) is not None) == hangs


@pytest.mark.parametrize("doing", ["starting", "saving", "sampling", "validating"])
def test_compiling_saving_and_sampling_may_take_long(doing: str) -> None:
    standing = dict.fromkeys(range(3), 1700.0)
    assert verdict(0, ranks(moved=standing, doing={2: doing})) is None
    assert verdict(0, ranks(moved=standing), longest=0.0) is None
    standing = dict.fromkeys(range(3), 1801.0)
    assert verdict(0, ranks(moved=standing, doing={2: doing})) is not None
