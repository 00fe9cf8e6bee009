"""What a run would pass over is refused when somebody gave it, and only then."""

from __future__ import annotations

import random
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatbench import cli
from chatbench.config import Leaf, leaves, resolve, to_toml
from chatbench.errors import ExitCode, UsageError
from chatbench.settings import FinetuneSettings
from chatbench.train.scope import OBJECTIVES, check_scope
from conftest import sample_chats, write_jsonl

PATHS = {"model": "m", "data": ["d.jsonl"], "out": "o"}
BY_KEY = {leaf.key: leaf for leaf in leaves(FinetuneSettings)}
KINDS = typing.get_args(BY_KEY["objective"].plain_type)


def settings(objective: str = "sft", **given: Any) -> FinetuneSettings:
    flags = {**PATHS, "objective": objective, **given}
    return resolve(FinetuneSettings, flags=flags, environ={}).settings


def another(leaf: Leaf, rng: random.Random) -> Any:
    """A value that is not the default, inside of the bounds."""
    kind = leaf.plain_type
    if typing.get_origin(kind) is typing.Literal:
        return rng.choice([each for each in typing.get_args(kind) if each != leaf.default])
    if kind is bool:
        return not leaf.default
    if kind == list[str]:
        return ["tea=茶"]
    if kind is str:
        return "茶"
    least = (leaf.meta and leaf.meta.ge) or 0
    return max(leaf.default or 0, least) + 1 if kind is int else (leaf.default or 0.5) / 2


def owners(key: str) -> tuple[str, ...]:
    return OBJECTIVES.get(key) or OBJECTIVES.get(key.rpartition(".")[0]) or KINDS


def beside(key: str) -> dict[str, Any]:
    """What a setting cannot do without."""
    adapter = key.startswith("lora.") or key == "quantize"
    return {"lora.rank": 4} if adapter and key != "lora.rank" else {}


def test_the_table_names_settings_and_objectives_that_exist() -> None:
    groups = {key.rpartition(".")[0] for key in BY_KEY}
    assert {*OBJECTIVES} <= {*BY_KEY} | groups
    assert {kind for kinds in OBJECTIVES.values() for kind in kinds} == {*KINDS}


@pytest.mark.parametrize("key", sorted(BY_KEY.keys() - {*PATHS, "objective"}))
def test_each_setting_is_taken_where_it_says_something_and_refused_elsewhere(
    key: str, rng: random.Random
) -> None:
    leaf = BY_KEY[key]
    given = {key: another(leaf, rng)}
    for objective in KINDS:
        if objective in owners(key):
            check_scope(settings(objective, **given | beside(key)))
            continue
        with pytest.raises(UsageError) as refused:
            check_scope(settings(objective, **given | beside(key)))
        assert leaf.spelled in str(refused.value)
        assert f"this is {objective}" in str(refused.value)
        assert f"choose --objective {owners(key)[0]}" in str(refused.value)
        check_scope(settings(objective, **{key: leaf.default}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantize", "int8"), ("lora.dropout", 0.1), ("lora.targets", ["q_proj"]),
        ("lora.alpha", 3.0), ("lora.rslora", True),
    ],
)  # fmt: skip
def test_what_is_of_adapters_needs_one(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match="of adapters, and none is trained; add --lora-rank") as no:
        check_scope(settings(**{key: value}))
    assert str(no.value).startswith(BY_KEY[key].spelled)


def test_all_of_a_kind_are_named_in_one_line() -> None:
    with pytest.raises(UsageError) as refused:
        check_scope(settings(**{"grpo.reward": ["chrf"], "grpo.group_size": 3, "grpo.updates": 2}))
    assert str(refused.value) == (
        "--reward, --group-size, --updates are of --objective grpo, and this is sft; leave them "
        "out, or choose --objective grpo"
    )
    with pytest.raises(UsageError) as refused:
        check_scope(settings("classify", **{"train.prompts": ["茶?"]}))
    assert str(refused.value) == (
        "train.prompts is of --objective sft, dpo or grpo, and this is classify; leave it out, or "
        "choose --objective sft"
    )


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_tags_that_are_kept_anyhow_may_be_asked_for(objective: str) -> None:
    check_scope(settings(objective, tag_dropout=0.0))
    with pytest.raises(UsageError, match="--tag-dropout is of --objective sft"):
        check_scope(settings(objective, tag_dropout=0.5))


@pytest.mark.parametrize("kind", ["ipo", "hinge"])
def test_labels_are_smoothed_by_one_loss_only(kind: str) -> None:
    given = {"preference.label_smoothing": 0.1}
    check_scope(settings("dpo", **given))
    with pytest.raises(UsageError, match=f"does not go with --loss-type {kind}"):
        check_scope(settings("dpo", **given, **{"preference.loss_type": kind}))


@pytest.mark.parametrize("objective", KINDS)
def test_the_settings_that_a_run_writes_can_be_given_again(
    objective: str, tmp_path: Path, rng: random.Random
) -> None:
    """All of those that say something, others as they are by default."""
    own = [key for key in BY_KEY if key not in (*PATHS, "objective") and objective in owners(key)]
    chosen: dict[str, Any] = {key: another(BY_KEY[key], rng) for key in rng.sample(own, 12)}
    chosen |= {"lora.rank": 2} if objective != "classify" else {}
    chosen.pop("preference.label_smoothing", None)
    first = settings(objective, **chosen)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(first), encoding="utf-8")
    again = resolve(FinetuneSettings, config_file=path, environ={}).settings
    assert again == first
    check_scope(again)


@pytest.mark.parametrize("way", ["flag", "set", "environment", "file"])
def test_it_is_refused_before_any_work_wherever_it_comes_from(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "given.toml"
    config.write_text("[grpo]\ngroup_size = 3\n" if way == "file" else "", encoding="utf-8")
    more = {"flag": ["--group-size", "3"], "set": ["--set", "grpo.group-size=3"]}.get(way, [])
    if way == "environment":
        monkeypatch.setenv("CHATBENCH_GRPO_GROUP_SIZE", "3")
    out = tmp_path / "run"
    words = ["finetune", "-m", "nowhere", "-d", "none.jsonl", "-o", str(out), "-c", str(config)]
    assert cli.run([*words, *more]) == ExitCode.USAGE
    named = "CHATBENCH_GRPO_GROUP_SIZE" if way == "environment" else "--group-size"
    assert " ".join(capsys.readouterr().err.split()) == (
        f"error: {named} is of --objective grpo, and this is sft; leave it out, or choose"
        " --objective grpo"
    )
    assert not out.exists()


def test_a_run_that_began_with_what_is_refused_now_can_be_ended(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(12))
    words = ["finetune", "-m", base_run, "-d", data, "-o", out, "--steps", "1", "--device", "cpu"]
    assert cli.run(list(map(str, words))) == ExitCode.DONE
    config = out / "config.toml"
    before = config.read_text("utf-8")
    config.write_text(before.replace("map = []", 'map = ["text=a"]'), "utf-8")
    assert config.read_text("utf-8") != before
    assert cli.run(["finetune", "--resume", "-o", str(out), "--steps", "2"]) == ExitCode.DONE
    again = ["finetune", "--resume", "-o", str(out), "--steps", "3", "--map", "text=b"]
    assert cli.run(again) == ExitCode.INTEGRITY
    assert "was started with other settings" in " ".join(capsys.readouterr().err.split())


def test_every_default_is_what_nobody_gave() -> None:
    for objective in KINDS:
        check_scope(settings(objective))
    required = {leaf.key for leaf in BY_KEY.values() if leaf.default is msgspec.NODEFAULT}
    assert required == {*PATHS}
