"""Every setting knows its value and where it came from, and mistakes name both."""

from __future__ import annotations

import random
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatbench import cli
from chatbench import settings as all_settings
from chatbench.config import (
    Leaf,
    differing_keys,
    environment_name,
    leaves,
    resolve,
    to_toml,
)
from chatbench.errors import ExitCode, UsageError
from chatbench.settings import (
    ChatSettings,
    FinetuneSettings,
    PreprocessSettings,
    PretrainSettings,
    Settings,
    replace,
)

EVERY_VERB = [
    kind
    for kind in vars(all_settings).values()
    if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings
]
PATHS = {"data": "corpus", "out": "run"}


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def pretrain(**given: Any) -> PretrainSettings:
    return resolve(PretrainSettings, **{"flags": PATHS, "environ": {}, **given}).settings


def test_flag_over_set_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "seed = 1\n[optim]\nbeta1 = 0.1\nbeta2 = 0.1\nmomentum = 0.1\n"
                "weight_decay = 0.1\n")  # fmt: skip
    environ = {
        environment_name(f"optim.{key}"): "0.2" for key in ("beta2", "momentum", "weight_decay")
    }
    found = resolve(
        PretrainSettings,
        config_file=file,
        environ={**environ, "UNRELATED": "x", "CHATBENCH_HOME": "/elsewhere"},
        overrides=["optim.momentum=0.3", "optim.weight-decay = 0.3"],
        flags={**PATHS, "optim.weight_decay": 0.4, "optim.beta1": None},
    )
    optim, sources = found.settings.optim, found.sources
    assert (optim.beta1, sources["optim.beta1"]) == (0.1, str(file))
    assert (optim.beta2, sources["optim.beta2"]) == (0.2, "environment")
    assert (optim.momentum, sources["optim.momentum"]) == (0.3, "--set")
    assert (optim.weight_decay, sources["optim.weight_decay"]) == (0.4, "flag")
    assert (optim.grad_clip, sources["optim.grad_clip"]) == (1.0, "default")
    assert (found.settings.seed, sources["seed"]) == (1, str(file))


def test_the_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBENCH_OPTIM_LEARNING_RATE", "3e-4")
    monkeypatch.setenv("CHATBENCH_DEVICE", "cpu")
    found = resolve(PretrainSettings, flags=PATHS)
    assert found.settings.optim.learning_rate == 3e-4
    assert found.settings.device == "cpu"
    assert found.sources["device"] == "environment"


def test_texts_are_taken_as_they_are_and_other_types_are_read() -> None:
    found = pretrain(
        overrides=[
            "data=123",
            "out=a=b",
            "train.tensorboard=false",
            'train.prompts=["你好", "b"]',
            "optim.learning_rate=3e-4",
            "train.steps=1_000",
        ],
        flags={},
    )
    assert (found.data, found.out) == ("123", "a=b")
    assert found.train.tensorboard is False
    assert found.train.prompts == ["你好", "b"]
    assert found.optim.learning_rate == 3e-4
    assert found.train.steps == 1000


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("optim.learning_rte", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("train.stepz", "train.steps"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(
    tmp_path: Path, key: str, suggestion: str
) -> None:
    file = toml(tmp_path, f"{key} = 1\n")
    ways = (({"config_file": file}, str(file)), ({"overrides": [f"{key}=1"]}, "--set"))
    for given, source in ways:
        with pytest.raises(UsageError) as caught:
            pretrain(**given)
        assert caught.value.exit_code == ExitCode.USAGE == 2
        assert f"unknown setting {key} in {source}" in str(caught.value)
        assert f"did you mean {suggestion}?" in str(caught.value)


def test_an_unrelated_key_gets_a_way_to_the_list_of_keys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown setting zzz\.qqq in .*; see --help"):
        pretrain(overrides=["zzz.qqq=1"])
    with pytest.raises(UsageError, match="unknown setting train in "):
        pretrain(config_file=toml(tmp_path, "train = 1\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", '"many"'),
        ("train.steps", "1.5"),
        ("train.steps", "0"),
        ("train.steps", "true"),
        ("train.steps", "2024-01-01"),
        ("optim.warmup", "1.01"),
        ("optim.learning_rate", "0"),
        ("optim.learning_rate", "nan"),
        ("optim.beta1", "-0.1"),
        ("train.prompts", '["a", 1]'),
        ("train.prompts", '"a"'),
        ("seed", "-1"),
        ("dtype", '"float8"'),
    ],
)
def test_a_wrong_type_or_range_names_the_key_and_its_source(
    tmp_path: Path, key: str, value: str
) -> None:
    file = toml(tmp_path, f"{key} = {value}\n")
    bare = value.strip('"')
    for given, source in (
        ({"config_file": file}, str(file)),
        ({"overrides": [f"{key}={bare}"]}, "--set"),
        ({"environ": {environment_name(key): bare}}, "environment"),
    ):
        with pytest.raises(UsageError) as caught:
            pretrain(**given)
        assert str(caught.value).startswith(f"setting {key} (from {source}): ")


def test_a_choice_that_is_none_gets_the_choices() -> None:
    with pytest.raises(UsageError, match=r"setting dedup \(from flag\).*; one of off, exact"):
        resolve(PreprocessSettings, flags={"out": "c", "dedup": "nearly"}, environ={})


def test_a_missing_setting_names_its_flag() -> None:
    with pytest.raises(UsageError, match="data is not given; add --data"):
        pretrain(flags={"out": "run"})


@pytest.mark.parametrize("kind", EVERY_VERB, ids=lambda kind: kind.__name__)
def test_what_is_missing_is_shown_as_required(
    tmp_path: Path, kind: type[Settings], rng: random.Random
) -> None:
    needed = [leaf for leaf in leaves(kind) if leaf.default is msgspec.NODEFAULT]
    given = {leaf.key: some_value(leaf, rng) for leaf in needed if rng.random() < 0.5}
    found = resolve(kind, flags=given, environ={}, incomplete=True)
    shown = to_toml(found.settings, found.sources)
    for leaf in needed:
        line = f"# {leaf.field} = (required)"
        assert (line in shown.splitlines()) == (leaf.key not in given)
    assert shown.count("(required)") == len(needed) - len(given)
    path = toml(tmp_path, shown)
    if len(given) < len(needed):
        with pytest.raises(UsageError, match="is not given; add --"):
            resolve(kind, config_file=path, environ={})
    again = resolve(kind, config_file=path, environ={}, incomplete=True)
    assert again.settings == found.settings


def test_the_command_line_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["finetune", "--lora-rank", "4", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("# model = (required)", "# data = (required)", "# out = (required)",
                 "rank = 4  # flag", "resume = false  # default"):  # fmt: skip
        assert line in lines
    assert cli.run(["finetune", "--lora-rank", "4"]) == ExitCode.USAGE
    assert "model is not given; add --model" in capsys.readouterr().err


def test_a_setting_is_spelled_as_people_give_it() -> None:
    spelled = {leaf.key: leaf.spelled for leaf in leaves(FinetuneSettings)}
    assert spelled["lora.alpha"] == "--lora-alpha"
    assert spelled["grpo.eval_prompts"] == "grpo.eval_prompts"
    found = resolve(FinetuneSettings, flags=PATHS | {"model": "茶"}, environ={}).settings
    assert {leaf.key: leaf.of(found) for leaf in leaves(FinetuneSettings)}["model"] == "茶"


def test_an_override_without_a_value_is_explained() -> None:
    with pytest.raises(UsageError, match="--set seed has no '='; write --set key=value"):
        pretrain(overrides=["seed"])


def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'data = "\xe9"')
    for path, why in (
        (tmp_path / "absent.toml", "does not exist"),
        (tmp_path, "is a folder"),
        (toml(tmp_path, "seed = "), "is not valid TOML"),
        (tmp_path / "latin.toml", "is not valid TOML"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            pretrain(config_file=path)
        assert str(path) in str(caught.value)


def some_value(leaf: Leaf, rng: random.Random) -> Any:
    kind = leaf.plain_type
    meta = leaf.meta
    assert meta is not None
    low = meta.ge if meta.ge is not None else meta.gt if meta.gt is not None else 0
    high = meta.le if meta.le is not None else meta.lt if meta.lt is not None else low + 1000
    if typing.get_origin(kind) is typing.Literal:
        return rng.choice(typing.get_args(kind))
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return rng.randint(low, high)
    if kind is float:
        return low + (high - low) * rng.uniform(1e-9, 0.999)
    words = ["", "tea", "茶 \"'#=\\", "line\nline\ttab", "👩‍👧 = [x]", "\x1b[0m", "# not a comment"]
    if typing.get_origin(kind) is dict:
        return {rng.choice(words): rng.uniform(-100, 100) for _ in range(rng.randrange(4))}
    return [rng.choice(words) for _ in range(rng.randrange(4))] if kind == list[str] else (
        rng.choice(words)
    )  # fmt: skip


@pytest.mark.parametrize("kind", EVERY_VERB, ids=lambda kind: kind.__name__)
def test_what_is_written_reads_back_the_same(
    tmp_path: Path, kind: type[Settings], rng: random.Random
) -> None:
    for _ in range(10):
        flags = {
            leaf.key: some_value(leaf, rng)
            for leaf in leaves(kind)
            if rng.random() < 0.5 or leaf.default is msgspec.NODEFAULT
        }
        found = resolve(kind, flags=flags, environ={})
        path = tmp_path / "config.toml"
        path.write_text(to_toml(found.settings), encoding="utf-8")
        assert resolve(kind, config_file=path, environ={}).settings == found.settings
        shown = to_toml(found.settings, found.sources)
        assert resolve(kind, config_file=toml(tmp_path, shown), environ={}).settings == (
            found.settings
        )


def test_what_is_not_set_is_left_out_or_shown_as_a_comment() -> None:
    found = resolve(PretrainSettings, flags=PATHS, environ={})
    written = to_toml(found.settings).splitlines()
    assert not [line for line in written if "None" in line or line.startswith(("#", "minutes"))]
    shown = to_toml(found.settings, found.sources).splitlines()
    assert "# minutes = (not set)  # default" in shown
    assert 'data = "corpus"  # flag' in shown


@pytest.mark.parametrize("kind", EVERY_VERB, ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_is_and_takes_its_own_default(kind: type[Settings]) -> None:
    for leaf in leaves(kind):
        assert leaf.meta is not None, leaf.key
        assert leaf.meta.description, leaf.key
        assert leaf.default is not None or type(None) in typing.get_args(leaf.annotation), leaf.key
    required = {leaf.key: "x" for leaf in leaves(kind) if leaf.default is msgspec.NODEFAULT}
    resolve(kind, flags=required, environ={})


def test_no_two_settings_of_a_verb_share_an_environment_name_or_a_flag() -> None:
    for kind in EVERY_VERB:
        found = list(leaves(kind))
        assert len({environment_name(leaf.key) for leaf in found}) == len(found)
        names = [leaf.name for leaf in found if leaf.meta and leaf.meta.extra]
        names += [n for leaf in found if leaf.meta and leaf.meta.extra
                  for n in leaf.meta.extra["names"]]  # fmt: skip
        assert len(set(names)) == len(names), kind


def test_settings_that_differ_are_listed_by_key() -> None:
    one = pretrain(overrides=["optim.beta1=0.5"])
    assert differing_keys(one, one) == {}
    assert differing_keys(one, pretrain(overrides=["seed=7"])) == {
        "optim.beta1": (0.5, 0.9),
        "seed": (0, 7),
    }


def test_a_replaced_value_is_checked_like_any_other() -> None:
    base = ChatSettings(model="m")
    assert replace(base, model="n").model == "n"
    assert base.model == "m"
    with pytest.raises(msgspec.ValidationError):
        replace(base, batch_size=0)


def test_two_settings_objects_share_no_list() -> None:
    one, other = (FinetuneSettings(model="m", data="d", out="o") for _ in range(2))
    one.train.prompts.append("x")
    assert other.train.prompts == []


RECIPE = '[pretrain]\ndata = "corpus"\nout = "base"\n[pretrain.train]\nsteps = 3\n' \
         '[finetune]\nmodel = "base"\ndata = ["a.jsonl", "b.jsonl"]\nout = "bot"\n'  # fmt: skip
VERBS = ("preprocess", "pretrain", "finetune", "report")


def test_a_file_with_a_table_for_each_verb_gives_each_verb_its_own(tmp_path: Path) -> None:
    path = toml(tmp_path, RECIPE)
    found = resolve(PretrainSettings, config_file=path, environ={}, verb="pretrain", verbs=VERBS)
    assert (found.settings.out, found.settings.train.steps) == ("base", 3)
    assert found.sources["train.steps"] == f"{path} [pretrain]"
    tuned = resolve(
        FinetuneSettings, config_file=path, environ={}, verb="finetune", verbs=VERBS,
        flags={"out": "other"},
    ).settings  # fmt: skip
    assert (tuned.data, tuned.out, tuned.train.steps) == (["a.jsonl", "b.jsonl"], "other", None)


def test_a_recipe_without_the_verbs_table_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(
            PreprocessSettings, config_file=toml(tmp_path, RECIPE), environ={},
            verb="preprocess", verbs=VERBS,
        )  # fmt: skip
    assert "no table [preprocess]" in str(raised.value)
    assert "[pretrain], [finetune]" in str(raised.value.hint)


def test_what_stands_beside_the_tables_of_verbs_is_not_passed_over(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 1\n" + RECIPE)
    with pytest.raises(UsageError, match=r"^seed stands in .* beside .* such as \[pretrain\]"):
        resolve(PretrainSettings, config_file=path, environ={}, verb="pretrain", verbs=VERBS)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_misspelt_table_of_a_recipe_is_named(tmp_path: Path, verb: str) -> None:
    kind = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}[verb]
    for text, told in (
        (RECIPE.replace("[finetune]", "[finetun]"), r"^finetun stands in .* mean finetune\?"),
        ('[finetun]\nmodel = "m"\n', r"^unknown table \[finetun\] in .* mean finetune\?"),
        ("[optm]\nbeta1 = 0.5\n", r"^unknown table \[optm\] in .* mean optim\?"),
        (f"[{verb}.trian]\nsteps = 3\n", r"^unknown table \[trian\] in .* mean train\?"),
    ):
        with pytest.raises(UsageError, match=told):
            resolve(kind, config_file=toml(tmp_path, text), environ={}, verb=verb, verbs=VERBS)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    assert pretrain(config_file=toml(tmp_path, "\ufeffseed = 7\n")).seed == 7


def test_one_text_in_the_place_of_a_list_gets_the_list(tmp_path: Path) -> None:
    for given in (
        {"config_file": toml(tmp_path, 'tag_column = "语气"\n')},
        {"overrides": ["tag_column=语气"]},
        {"environ": {"CHATBENCH_TAG_COLUMN": "语气"}},
    ):
        with pytest.raises(UsageError) as raised:
            resolve(PreprocessSettings, **{"flags": {"out": "c"}, "environ": {}, **given})
        assert raised.value.hint == 'write a list: ["语气"]'


def test_a_setting_that_is_called_as_a_verb_stays_a_setting(tmp_path: Path) -> None:
    path = toml(tmp_path, 'report = true\ninputs = []\nmodel = "m"\n')
    found = resolve(
        all_settings.ClassifySettings, config_file=path, environ={}, verb="classify", verbs=VERBS
    )
    assert found.settings.report
