"""The command line as people meet it: one line for a mistake, one code for a kind of mistake."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from chatbench import __version__, cli
from chatbench.storage import MANIFEST
from conftest import sample_chats, write_jsonl

Program = Callable[..., subprocess.CompletedProcess[str]]
VERBS = ("demo", "preprocess", "pretrain", "finetune", "evaluate", "chat")
TINY = ("--n-layers", "1", "--hidden-size", "16", "--n-heads", "1", "--set", "model.ffn_size=32",
        "--set", "train.tensorboard=false", "--seq-len", "32", "--batch-tokens", "64",
        "--steps", "2", "--dtype", "float32", "--device", "cpu")  # fmt: skip


class Said:
    """What a command said, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def mistake(self, code: int) -> str:
        """The one line of a user's mistake; everything else about it is checked here."""
        assert self.code == code, self.err
        assert self.out == ""
        *before, last = self.err.splitlines()
        assert last.startswith("error: "), self.err
        assert not [line for line in before if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return last


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The program inside this process: no second start of the interpreter."""

    def said(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Said(int(code), shown.out, shown.err)

    return said


Run = Callable[..., Said]


# -- mistakes ----------------------------------------------------------------------------------


def test_no_arguments_show_the_verbs(run: Run) -> None:
    said = run()
    assert said.code == 2
    assert "Traceback" not in said.err
    assert "error" not in said.err
    assert all(verb in said.out + said.err for verb in VERBS)


def test_an_unknown_verb_is_named(run: Run) -> None:
    assert "'pretrian'" in run("pretrian").mistake(2)


def test_an_unknown_flag_names_the_nearest(run: Run) -> None:
    assert "--learning-rate" in run("pretrain", "--lerning-rate", "1").mistake(2)


def test_a_flag_without_its_value_is_named(run: Run) -> None:
    assert "--seed" in run("pretrain", "--seed").mistake(2)


def test_a_setting_that_must_be_given_is_named(run: Run) -> None:
    assert "--data" in run("pretrain", "-o", "run").mistake(2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("preprocess", "{}/none", "-o", "{}/out"),
        ("pretrain", "-d", "{}/none", "-o", "{}/out"),
        ("finetune", "-m", "{}/none", "-d", "{}/none", "-o", "{}/out"),
        ("evaluate", "-m", "{}/none", "-d", "{}/none"),
        ("chat", "-m", "{}/none", "--jsonl"),
        ("pretrain", "-c", "{}/none"),
    ],
)
def test_a_path_that_does_not_exist_is_named_and_nothing_is_made(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    last = run(*(word.format(tmp_path) for word in arguments)).mistake(2)
    assert f"{tmp_path / 'none'} does not exist" in last
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_exist_is_named(run: Run, base_run: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    said = run("finetune", "-m", base_run, "-d", missing, "-o", tmp_path / "out")
    assert f"{missing} does not exist" in said.mistake(2)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_holds_no_data(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = run("preprocess", tmp_path / "empty", "-o", tmp_path / "out")
    assert "no files" in said.mistake(3)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_no_corpus_and_no_model(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in run("pretrain", "-d", empty, "-o", tmp_path / "out").mistake(4)
    assert "holds no model" in run("chat", "-m", empty, "--jsonl").mistake(2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rate = 1e-3", "optim.learning_rate"),
        ("[optim]\nlearnin_rate = 1e-3", "optim.learning_rate"),
        ("[train]\nsteps = 'many'", "train.steps"),
        ("[train]\nsteps = 1.5", "train.steps"),
        ("[train]\nsteps = 0", "train.steps"),
        ("[optim]\noptimizer = 'sgd'", "optim.optimizer"),
        ("[model]\nsize = 3", "model.size"),
        ("seed = ", "not valid TOML"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("[model.size]\nx = 1", "model.size"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(
    run: Run, tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    last = run("pretrain", "-d", "c", "-o", tmp_path / "out", "-c", path).mistake(2)
    assert named in last
    assert str(path) in last


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("optim.learnin_rate=1", "did you mean optim.learning_rate?"),
        ("optim.learning_rate=fast", "'fast'"),
        ("optim.learning_rate=-1", "optim.learning_rate"),
        ("train.prompts=[1]", "train.prompts"),
        ("steps", "has no '='"),
    ],
)
def test_what_is_wrong_in_set_is_named(run: Run, tmp_path: Path, given: str, named: str) -> None:
    said = run("pretrain", "-d", "c", "-o", tmp_path / "out", "--set", given)
    assert named in said.mistake(2)


def test_what_is_wrong_in_the_environment_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBENCH_TRAIN_STEPS", "many")
    last = run("pretrain", "-d", "c", "-o", tmp_path / "out").mistake(2)
    assert "train.steps (from environment)" in last


@pytest.mark.parametrize(
    "words", [("--seed", "one"), ("--seed", "-1"), ("--size", "huge"), ("--minutes", "0")]
)
def test_a_flag_of_the_wrong_kind_is_named(run: Run, words: tuple[str, str]) -> None:
    last = run("pretrain", "-d", "c", "-o", "r", *words).mistake(2)
    assert words[0].removeprefix("--") in last


def test_a_finished_run_is_not_trained_over(run: Run, base_run: Path, corpus_folder: Path) -> None:
    last = run("pretrain", "-d", corpus_folder, "-o", base_run, *TINY).mistake(2)
    assert f"{base_run} holds a finished run already; choose another --out" in last


def test_rows_longer_than_the_context_are_refused(run: Run, base_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(10))
    said = run("finetune", "-m", base_run, "-d", data, "-o", tmp_path / "out", "--seq-len", "64")
    assert "--seq-len 64 is longer than the model's context of 48" in said.mistake(2)
    assert not (tmp_path / "out").exists()


def test_numbers_that_make_no_model_are_refused_before_a_folder_is_made(
    run: Run, corpus_folder: Path, tmp_path: Path
) -> None:
    words = ("--hidden-size", "10", "--n-heads", "3")
    said = run("pretrain", "-d", corpus_folder, "-o", tmp_path / "out", *words)
    assert "hidden_size 10" in said.mistake(2)
    assert not (tmp_path / "out").exists()


def test_a_rate_that_explodes_ends_with_its_own_code(
    run: Run, corpus_folder: Path, tmp_path: Path
) -> None:
    said = run("pretrain", "-d", corpus_folder, "-o", tmp_path / "out", *TINY,
               "--steps", "30", "--lr", "1e38")  # fmt: skip
    assert "lower --learning-rate" in said.mistake(7)


@pytest.fixture
def model(base_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(base_run / "model", tmp_path / "model"))


def test_a_model_without_tokenizer_is_refused(run: Run, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json" in run("chat", "-m", model, "--jsonl").mistake(4)
    (model / MANIFEST).unlink()
    assert "has no tokenizer.json" in run("chat", "-m", model, "--jsonl").mistake(4)


@pytest.mark.parametrize("manifest", [True, False])
def test_truncated_weights_are_refused(
    run: Run, model: Path, rng: random.Random, manifest: bool
) -> None:
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: rng.choice([0, 1, 7, 8, len(data) // 2, len(data) - 1])])
    if not manifest:
        (model / MANIFEST).unlink()
    assert str(weights) in run("chat", "-m", model, "--jsonl").mistake(4)


def test_an_unknown_device_is_refused(run: Run, model: Path) -> None:
    assert "not a device" in run("chat", "-m", model, "--jsonl", "--device", "tpu9").mistake(2)


# -- where values come from --------------------------------------------------------------------


def printed(said: Said) -> tuple[dict[str, object], dict[str, str]]:
    """The settings that --print-config shows, and the source of each."""
    assert said.code == 0, said.err
    sources = {}
    section = name = ""
    for line in said.out.splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        if re.match(r"(# )?\w+ = ", line):
            name = line.removeprefix("# ").split(" = ")[0]
        if "  # " in line:  # after the last line of a list
            sources[section + name] = line.rsplit("  # ", 1)[1]
    return tomllib.loads(said.out), sources


def test_flag_beats_environment_beats_file_beats_default(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(
        "seed = 1\n[train]\nsteps = 11\nseq_len = 12\nkeep = 5\n[optim]\nwarmup = 0.5\n"
    )
    monkeypatch.setenv("CHATBENCH_SEED", "2")
    monkeypatch.setenv("CHATBENCH_TRAIN_STEPS", "22")
    monkeypatch.setenv("CHATBENCH_TRAIN_SEQ_LEN", "23")
    said = run("pretrain", "-d", "c", "-o", "r", "-c", path, "--seed", "3",
               "--set", "train.steps=33", "--print-config")  # fmt: skip
    values, sources = printed(said)
    train = values["train"]
    assert isinstance(train, dict)
    assert (values["seed"], sources["seed"]) == (3, "flag")
    assert (train["steps"], sources["train.steps"]) == (33, "--set")
    assert (train["seq_len"], sources["train.seq_len"]) == (23, "environment")
    assert (train["keep"], sources["train.keep"]) == (5, str(path))
    assert sources["optim.warmup"] == str(path)
    assert sources["optim.momentum"] == sources["train.minutes"] == "default"


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_printed_is_itself_an_input(run: Run, tmp_path: Path, verb: str) -> None:
    needed = {"demo": (), "preprocess": ("x", "-o", "r"), "pretrain": ("-d", "c", "-o", "r"),
              "finetune": ("-m", "m", "-d", "c", "-o", "r"), "evaluate": ("-m", "m", "-d", "c"),
              "chat": ("-m", "m", "--stop", "a\"'b", "--temp", "1e-3")}[verb]  # fmt: skip
    first = printed(run(verb, *needed, "--print-config"))[0]
    (tmp_path / "again.toml").write_text(run(verb, *needed, "--print-config").out, "utf-8")
    assert printed(run(verb, "-c", tmp_path / "again.toml", "--print-config"))[0] == first


@pytest.mark.parametrize(
    ("verb", "words", "key", "value"),
    [
        ("pretrain", ("--learning_rate", "0.5"), "optim.learning_rate", 0.5),
        ("pretrain", ("--lr", "3e-4"), "optim.learning_rate", 3e-4),
        ("pretrain", ("--lr=3e-4",), "optim.learning_rate", 3e-4),
        ("pretrain", ("--max-iters", "7"), "train.steps", 7),
        ("pretrain", ("--max_iters", "7"), "train.steps", 7),
        ("pretrain", ("--max-steps", "7"), "train.steps", 7),
        ("pretrain", ("--block-size", "64"), "train.seq_len", 64),
        ("pretrain", ("--block_size", "64"), "train.seq_len", 64),
        ("pretrain", ("--n_embd", "64"), "model.hidden_size", 64),
        ("pretrain", ("--n_layer", "3"), "model.n_layers", 3),
        ("pretrain", ("--batch-size", "3"), "train.micro_batch", 3),
        ("pretrain", ("-b", "3"), "train.micro_batch", 3),
        ("pretrain", ("--eval_interval", "9"), "train.eval_every", 9),
        ("pretrain", ("--out_dir", "x"), "out", "x"),
        ("finetune", ("--num_train_epochs", "2"), "train.epochs", 2.0),
        ("finetune", ("--save_total_limit", "2"), "train.keep", 2),
        ("chat", ("--max-new-tokens", "9"), "sampling.max_tokens", 9),
        ("chat", ("--max_new_tokens", "9"), "sampling.max_tokens", 9),
        ("chat", ("-n", "9"), "samples", 9),
        ("chat", ("--temp", "0"), "sampling.temperature", 0.0),
        ("chat", ("--top_k", "0"), "sampling.top_k", 0),
        ("chat", ("--repeat-penalty", "1.5"), "sampling.repetition_penalty", 1.5),
        ("chat", ("--stop", "a", "--stop", "b"), "sampling.stop", ["a", "b"]),
        ("chat", ("--no-history",), "history", False),
        ("chat", ("--continue",), "continue_", True),
        ("chat", ("--no-save", "--session", "茶"), "save", False),
        ("chat", ("--session", "茶"), "session", "茶"),
        ("evaluate", ("--limit", "5"), "max_examples", 5),
    ],
)
def test_the_names_people_know_are_understood(
    run: Run, verb: str, words: tuple[str, ...], key: str, value: object
) -> None:
    needed = {"pretrain": ("-d", "c", "-o", "r"), "finetune": ("-m", "m", "-d", "c", "-o", "r"),
              "evaluate": ("-m", "m", "-d", "c"), "chat": ("-m", "m")}[verb]  # fmt: skip
    values, sources = printed(run(verb, *needed, *words, "--print-config"))
    found: object = values
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    assert found == value
    assert sources[key] == "flag"


def test_printing_the_settings_does_nothing_else(run: Run, tmp_path: Path) -> None:
    printed(run("preprocess", tmp_path, "-o", tmp_path / "out", "--print-config"))
    assert list(tmp_path.iterdir()) == []


# -- what comes out ----------------------------------------------------------------------------


def test_the_run_folder_is_all_there_is_on_stdout(
    run: Run, corpus_folder: Path, tmp_path: Path
) -> None:
    base, bot = tmp_path / "base", tmp_path / "bot"
    said = run("pretrain", "-d", corpus_folder, "-o", base, *TINY)
    assert (said.code, said.out) == (0, f"{base}\n"), said.err
    assert "layers" in said.err
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(20))
    said = run("finetune", "-m", base, "-d", data, "-o", bot, "--steps", "1", "--device", "cpu",
               "--set", "train.tensorboard=false")  # fmt: skip
    assert (said.code, said.out) == (0, f"{bot}\n"), said.err


def test_the_version_is_one_line_of_data(run: Run) -> None:
    said = run("--version")
    assert (said.code, said.out, said.err) == (0, f"chatbench {__version__}\n", "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", VERBS)
def test_help_is_given_and_names_every_common_flag(run: Run, verb: str, flag: str) -> None:
    said = run(verb, flag)
    assert said.code == 0
    for word in ("--config", "--set", "--print-config"):
        assert word in said.out


# -- the process -------------------------------------------------------------------------------


def test_parsing_and_help_load_nothing_heavy() -> None:
    """Every verb's help and settings in one process, then a look at what was imported."""
    code = f"""
import contextlib, io, sys
from chatbench import cli
with contextlib.redirect_stdout(io.StringIO()):
    for verb in {VERBS!r}:
        assert cli.run([verb, "--help"]) == 0
    assert cli.run(["pretrain", "-d", "c", "-o", "r", "--print-config"]) == 0
heavy = {{"torch", "nltk", "tokenizers", "transformers", "safetensors", "prompt_toolkit", "numpy"}}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "\n"


def test_a_mistake_in_the_real_program_is_one_line(cli: Program, tmp_path: Path) -> None:
    done = cli("preprocess", tmp_path / "none", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_output_to_a_full_device_is_an_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "chatbench", "--version"], stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_left_is_no_error_worth_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "chatbench", "pretrain", "-d", "c", "-o", "r", "--print-config"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"])
def test_a_closed_or_full_stdout_is_one_line_and_exit_5(stdout: str) -> None:
    command = f'exec "{sys.executable}" -m chatbench chat --print-config -m x {stdout}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
