"""demo: the five verbs on the bundled corpus, each shown as the command that anyone can type."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from chatbench import console
from chatbench.chat.session import ChatSession
from chatbench.config import resolve
from chatbench.corpus.build import preprocess
from chatbench.demo.corpus import dialogues, prose, questions
from chatbench.engine.engine import Completion
from chatbench.errors import IntegrityError, UsageError
from chatbench.evaluate.run import Evaluation, evaluate
from chatbench.flags import command_line
from chatbench.model.device import pick_device
from chatbench.model.folder import open_model
from chatbench.settings import (
    ChatSettings,
    DemoSettings,
    EvaluateSettings,
    FinetuneSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    PretrainSettings,
    SamplingSettings,
    TrainSettings,
)
from chatbench.storage import remove_folder, write_file
from chatbench.train.recipes import finetune, pretrain

LANGUAGES = {"en": "English", "zh": "Chinese"}
_DIALOGUES = 8000
_PASSAGES = 1500
# Steps that suffice, and minutes that a slow machine may take instead: under four in all.
_SHAPE = ModelSettings(n_layers=2, hidden_size=128, n_heads=2)
_PRETRAIN = TrainSettings(minutes=0.65, steps=240, seq_len=128, batch_tokens=2048, eval_tokens=8192)
_FINETUNE = TrainSettings(minutes=2.15, steps=850, batch_tokens=2048, eval_tokens=8192)
_OPTIM = OptimSettings(learning_rate=0.006)
_ASKED = (("en", "address"), ("zh", "delivery_fee"), ("en", "returns"))
_VERBS: dict[str, Callable[[Any], Path | None]] = {
    "preprocess": preprocess,
    "pretrain": pretrain,
    "finetune": finetune,
}
_FOLDERS = ("corpus", "base", "bot", *(f"evaluation-{language}" for language in LANGUAGES))
_FILES = (
    "dialogues.jsonl", "prose.jsonl", "report.md",
    *(f"questions-{language}.jsonl" for language in LANGUAGES),
)  # fmt: skip
_METRIC = "exact_fact_match"


def demo(settings: DemoSettings) -> int:
    """Do what is not done yet, then talk: a conversation on a terminal, else three answers."""
    begun = time.monotonic()
    out = Path(settings.out)
    if settings.fresh:
        _start_over(out)
    _check_seed(out, settings.seed)
    _write_sources(out, settings.seed)
    for verb, step in _steps(out, settings.seed):
        _run(verb, step)
    scores = [_judge(out, language) for language in LANGUAGES]
    _report(out, scores, time.monotonic() - begun)
    return _talk(out)


def _start_over(out: Path) -> None:
    """Remove what the demo makes, and nothing else that may lie in the folder."""
    for name in _FOLDERS:
        remove_folder(out / name)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)


def _check_seed(out: Path, seed: int) -> None:
    """Raise UsageError when the folder holds the demo of another seed."""
    stored = out / "base" / "config.toml"
    if stored.is_file():
        before = resolve(PretrainSettings, config_file=stored, environ={}).settings.seed
        if before != seed:
            raise UsageError(f"{out} holds the demo of seed {before}", hint="add --fresh")


def _write_sources(out: Path, seed: int) -> None:
    """The bundled corpus as the files that a person would bring."""
    held_out = questions()
    files: dict[str, Iterable[dict[str, Any]]] = {
        "dialogues.jsonl": dialogues(seed, _DIALOGUES),
        "prose.jsonl": ({"text": text} for text in prose(seed, _PASSAGES)),
    }
    for language in LANGUAGES:
        rows = [row for row in held_out if row["language"] == language]
        files[f"questions-{language}.jsonl"] = rows
    for name, content in files.items():
        if not (out / name).is_file():
            lines = b"".join(msgspec.json.encode(row) + b"\n" for row in content)
            write_file(out / name, lines)


def _steps(out: Path, seed: int) -> list[tuple[str, Any]]:
    """preprocess, pretrain and finetune as settings; finished ones are left out."""
    corpus, base, bot = (out / name for name in ("corpus", "base", "bot"))
    steps: list[tuple[str, Any]] = []
    if not corpus.is_dir():
        sources = [str(out / "prose.jsonl"), str(out / "dialogues.jsonl")]
        steps.append(
            (
                "preprocess",
                PreprocessSettings(inputs=sources, out=str(corpus), vocab_size=2048, profile=False),
            )
        )
    if not (base / "model").is_dir():
        steps.append(
            ("pretrain", PretrainSettings(data=str(corpus), out=str(base), seed=seed, model=_SHAPE,
                                          train=_PRETRAIN, optim=_OPTIM, resume=base.is_dir()))
        )  # fmt: skip
    if not (bot / "model").is_dir():
        steps.append(
            ("finetune", FinetuneSettings(model=str(base), data=[str(out / "dialogues.jsonl")],
                                          out=str(bot), seed=seed, train=_FINETUNE, optim=_OPTIM,
                                          resume=bot.is_dir()))
        )  # fmt: skip
    return steps


def _run(verb: str, settings: Any) -> None:
    positional = "inputs" if verb == "preprocess" else None
    _show_command(command_line(verb, settings, positional))
    begun = time.monotonic()
    try:
        _VERBS[verb](settings)
    except IntegrityError as error:
        hint = error.hint or ""
        raise IntegrityError(error.message, hint=f"{hint} (or start over: demo --fresh)") from error
    console.say(f"{verb}: {console.format_duration(time.monotonic() - begun)}\n", style="dim")


def _show_command(command: str) -> None:
    console.say(f"$ {command}", style="bold")


def _judge(out: Path, language: str) -> tuple[Evaluation, str]:
    """Score the held-out questions of one language, or read the scores that are there."""
    where = out / f"evaluation-{language}"
    settings = EvaluateSettings(
        model=str(out / "bot"), data=str(out / f"questions-{language}.jsonl"), out=str(where)
    )
    command = command_line("evaluate", settings)
    if not where.is_dir():
        _show_command(command)
        return evaluate(settings), command
    stored = (where / "results.json").read_bytes()
    return msgspec.json.decode(stored, type=Evaluation), command


def _report(out: Path, judged: list[tuple[Evaluation, str]], seconds: float) -> None:
    """The scores for people, and report.md in the demo's folder."""
    names = [score.name for score in judged[0][0].scores]
    by_language = [{score.name: score for score in result.scores} for result, _ in judged]
    rows = [
        [name, *(f"{scores[name].value:.2f}" for scores in by_language)]
        for name in names
        if all(name in scores for scores in by_language)
    ]
    console.table("held-out questions, never trained on", ["", *LANGUAGES.values()], rows)
    facts = " · ".join(
        f"{title} {scores[_METRIC].value:.1f} % of {scores[_METRIC].n}"
        for title, scores in zip(LANGUAGES.values(), by_language, strict=True)
    )
    console.say(f"right fact ({_METRIC}): {facts}", style="bold")
    console.say(f"took {console.format_duration(seconds)}; everything is in {out}\n", style="dim")
    lines = ["# Demo", "", f"Right fact ({_METRIC}): {facts}", ""]
    lines += ["| score | " + " | ".join(LANGUAGES.values()) + " |", "|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "Signatures:", ""]
    lines += [f"- {name}: {score.signature}" for name, score in by_language[0].items()]
    lines += ["", "Made by:", "", *(f"    {command}" for _, command in judged), ""]
    write_file(out / "report.md", "\n".join(lines).encode())


def _talk(out: Path) -> int:
    settings = ChatSettings(model=str(out / "bot"), sampling=SamplingSettings(temperature=0.0))
    _show_command(command_line("chat", settings))
    opened = open_model(settings.model, pick_device("auto"))
    session = ChatSession(opened, settings.sampling)
    if console.stdin_is_terminal() and console.stdout_is_terminal():
        from chatbench.chat.repl import repl

        return repl(session, keep_history=True)
    for question in _asked():
        session.clear()
        console.emit(f"> {question}")
        for event in session.send(question):
            if isinstance(event, Completion):
                console.emit(console.visible(event.text))
    return 0


def _asked() -> list[str]:
    """Three held-out questions, both languages among them."""
    rows = questions()
    chosen = []
    for language, intent in _ASKED:
        fitting = (r for r in rows if r["language"] == language and r["intent"] == intent)
        messages: Any = next(fitting)["messages"]
        chosen.append(messages[0]["content"])
    return chosen
