"""From what a person said to what will be done."""

from __future__ import annotations

import random

import pytest

from chatbench.errors import UsageError
from chatbench.settings import (
    FinetuneSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.train.plan import (
    SIZES,
    Plan,
    default_rate,
    is_open,
    make_plan,
    model_config,
    take_over,
    usual_batch,
)
from chatbench.train.table import show_plan


def plan(rows: int = 100, **train: object) -> Plan:
    return make_plan(
        TrainSettings(**train), OptimSettings(), seq_len=64, batch_tokens=512,
        rows_per_epoch=rows, default_minutes=10.0,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": 5000}, 10),
        ({"tokens": 5120}, 10),
        ({"tokens": 5121}, 11),
        ({"epochs": 2}, 25),
        ({"epochs": 0.001}, 1),
        ({"steps": 30, "epochs": 2}, 25),
        ({"steps": 30, "tokens": 512}, 1),
    ],
)
def test_any_unit_of_length_becomes_steps_and_the_first_reached_ends(
    train: dict[str, object], steps: int
) -> None:
    made = plan(**train)
    assert (made.steps, made.minutes) == (steps, None)


def test_without_a_length_the_default_is_a_time() -> None:
    assert (plan().steps, plan().minutes) == (None, 10.0)


def test_a_default_of_epochs_gives_way_to_any_length() -> None:
    def made(settings: TrainSettings) -> Plan:
        return make_plan(
            settings, OptimSettings(), seq_len=64, batch_tokens=512, rows_per_epoch=80,
            default_epochs=3.0,
        )  # fmt: skip

    assert made(TrainSettings()).steps == 30
    assert made(TrainSettings(minutes=1)).steps is None


def test_progress_follows_the_nearest_limit() -> None:
    made = plan(steps=10, minutes=2)
    assert made.progress(5, 0) == 0.5
    assert made.progress(1, 90) == 0.75
    assert plan(minutes=1).progress(10**6, 30) == 0.5
    assert plan(steps=4).progress(4, 10**9) == 1.0


def test_the_batch_is_given_in_tokens_and_the_micro_batch_in_rows(rng: random.Random) -> None:
    assert plan().rows_per_step == 8
    assert plan(batch_tokens=640).rows_per_step == 10
    assert plan(batch_tokens=8).rows_per_step == 1
    micro = rng.randint(1, 20)
    assert plan(micro_batch=micro).micro_batch == min(8, micro)


def test_cadences_follow_the_length_and_can_be_given() -> None:
    assert plan(steps=100).eval_every == 20
    assert plan(steps=2).eval_every == 1
    assert plan(steps=100_000).eval_every == 250
    assert plan(steps=100).save_every == 100
    given = plan(steps=100, eval_every=3, save_every=5)
    assert (given.eval_every, given.sample_every, given.save_every) == (3, 3, 5)
    assert plan(steps=100, sample_every=9).sample_every == 9


def test_each_optimiser_has_its_own_default_rate() -> None:
    def rate(**optim: object) -> float:
        made = make_plan(
            TrainSettings(steps=1), OptimSettings(**optim), seq_len=8, batch_tokens=8,
            rows_per_epoch=1,
        )  # type: ignore[arg-type]  # fmt: skip
        return made.learning_rate

    assert rate() > rate(optimizer="adamw") > 0
    assert rate(learning_rate=0.25) == 0.25


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_by_name_are_whole_models(size: str) -> None:
    config = model_config(ModelSettings(size=size), None, 1000)  # type: ignore[arg-type]
    assert config.n_heads * config.head_dim == config.hidden_size
    assert config.context == SIZES[size].seq_len
    assert config.vocab_size == 1000


def test_explicit_numbers_win_over_the_size(rng: random.Random) -> None:
    heads = rng.randint(1, 8)
    config = model_config(
        ModelSettings(
            hidden_size=16 * heads, n_heads=heads, n_kv_heads=heads, n_layers=3, ffn_size=40
        ),
        99,
        300,
    )
    assert config[:8] == (300, 3, 16 * heads, heads, heads, 16, 40, 99)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"hidden_size": 100, "n_heads": 3}, "hidden_size 100"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads 3"),
        ({"hidden_size": 16, "head_dim": 5}, "head_dim 5"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(given: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        model_config(ModelSettings(**given), None, 300)  # type: ignore[arg-type]


def test_the_plan_is_told_to_people_alone(capsys: pytest.CaptureFixture[str]) -> None:
    config = model_config(ModelSettings(), None, 300)
    show_plan(plan(steps=50), config, 1_234_567, 100, "float32 on cpu")
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("4 layers", "1.23M parameters", "50 steps", "4 epochs", "float32 on cpu"):
        assert word in shown.err


def test_a_small_set_still_gets_steps_unless_the_batch_is_given() -> None:
    def made(
        rows: int, finetune: bool = False, width: int = 128, whole: bool = True, **train: object
    ) -> Plan:
        return make_plan(
            TrainSettings(**train), OptimSettings(), seq_len=64, batch_tokens=4096,
            rows_per_epoch=rows, default_epochs=3.0, finetune=finetune, hidden_size=width,
            whole=whole,
        )  # type: ignore[arg-type]  # fmt: skip

    assert made(5).steps == 15
    assert made(40).steps == 30
    assert made(40, batch_tokens=4096).steps == 2
    assert made(6400).rows_per_step == 64
    assert made(400, finetune=True, width=256).rows_per_step == 16
    assert made(400, finetune=True, width=256, whole=False).rows_per_step == 8
    assert made(40, finetune=True).steps == 60
    assert made(6400, finetune=True).rows_per_step == 32
    assert made(20_000, finetune=True).rows_per_step == 64


def test_minutes_count_from_the_command_and_the_schedule_from_the_first_step(
    rng: random.Random,
) -> None:
    minutes = rng.uniform(0.5, 60)
    spent = rng.uniform(0.1, 0.4) * minutes * 60
    made = plan(minutes=minutes)._replace(spent=spent)
    assert made.progress(0, spent) == 0
    assert made.progress(0, 60 * minutes) == pytest.approx(1, rel=1e-12)
    half = (spent + 60 * minutes) / 2
    assert made.progress(0, half) == pytest.approx(0.5, rel=1e-12)


def test_the_time_left_is_told_at_the_pace_of_the_training_alone() -> None:
    made = plan(minutes=1.0)._replace(spent=10.0)
    assert made.left(5, 10.0) == 0
    assert made.left(5, 35.0) == pytest.approx(25)
    assert plan(steps=100).left(25, 30.0) == pytest.approx(90)


def test_a_start_that_took_longer_than_the_run_still_leaves_steps() -> None:
    made = plan(minutes=1)._replace(spent=1e6)
    assert made.progress(0, 54) == 0
    assert made.progress(0, 60) == pytest.approx(1, rel=1e-12)


def test_the_rate_falls_with_the_width_and_grows_as_the_root_of_the_batch(
    rng: random.Random,
) -> None:
    width = 64 * rng.randint(1, 16)
    for optimizer in ("muon", "adamw"):
        rate = default_rate(optimizer, width, finetune=False, batch_tokens=2048)
        assert default_rate(optimizer, 2 * width, finetune=False) == pytest.approx(rate / 2)
        doubled = default_rate(optimizer, width, finetune=False, batch_tokens=8192)
        assert doubled == pytest.approx(2 * rate)
        assert default_rate(optimizer, width, finetune=True) == pytest.approx(rate / 4)
        bounds = [
            default_rate(optimizer, width, finetune=False, batch_tokens=tokens) / rate
            for tokens in (1, 1 << 40)
        ]
        assert bounds == pytest.approx([0.7, 3.0])


@pytest.mark.parametrize(
    ("size", "shape"),
    [("gpt2", (12, 768, 12)), ("gpt2-medium", (24, 1024, 16)), ("gpt2-large", (36, 1280, 20)),
     ("gpt2-xl", (48, 1600, 25))],
)  # fmt: skip
def test_gpt2_sizes_have_its_depth_width_heads_and_context(
    size: str, shape: tuple[int, int, int]
) -> None:
    config = model_config(ModelSettings(size=size), None, 50257)  # type: ignore[arg-type]
    assert (config.n_layers, config.hidden_size, config.n_heads) == shape
    assert (config.context, config.n_kv_heads, config.head_dim) == (1024, config.n_heads, 64)


def test_a_shape_is_open_until_anything_of_it_is_given() -> None:
    assert is_open(ModelSettings())
    assert not is_open(ModelSettings(size="tiny"))
    for name in ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "ffn_size"):
        assert not is_open(ModelSettings(**{name: 8}))
    assert usual_batch(ModelSettings()) == usual_batch(ModelSettings(size="tiny"))


def test_a_resume_takes_over_what_was_chosen_and_nothing_that_is_given() -> None:
    before = PretrainSettings(
        data="d", out="o", model=ModelSettings(n_layers=3, hidden_size=192, n_heads=3),
        train=TrainSettings(seq_len=128, batch_tokens=2048, micro_batch=8, minutes=3),
    )  # fmt: skip
    now = PretrainSettings(data="d", out="o", train=TrainSettings(micro_batch=4))
    take_over(now, before)
    assert (now.model.n_layers, now.model.hidden_size, now.model.n_heads) == (3, 192, 3)
    assert (now.train.seq_len, now.train.batch_tokens, now.train.micro_batch) == (128, 2048, 4)
    assert now.train.minutes is None
    sized = PretrainSettings(data="d", out="o", model=ModelSettings(size="small"))
    take_over(sized, before)
    assert sized.model == ModelSettings(size="small")
    tuned = FinetuneSettings(model="base", data="d", out="o")
    take_over(tuned, FinetuneSettings(model="base", data="d", out="o", train=before.train))
    assert (tuned.model, tuned.train.micro_batch) == ("base", 8)
