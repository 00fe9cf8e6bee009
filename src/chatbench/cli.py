"""The verbs: parse, call one function, print. Heavy imports stay inside the bodies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from chatbench import __version__, console
from chatbench.errors import EnvironmentFault, ExitCode, UserError, is_out_of_memory
from chatbench.flags import CONTEXT, settings_command
from chatbench.settings import (
    ChatSettings,
    ClassifySettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    PreprocessSettings,
    PretrainSettings,
    ReportSettings,
    ScreenSettings,
)

app = typer.Typer(
    help="Turn your own text and dialogues into a chatbot that you own.\n\n"
    "preprocess → pretrain → finetune → evaluate → chat; start with: chatbench demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.emit(f"chatbench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Options before the verb."""


@settings_command(
    app, DemoSettings, name="demo",
    help="All five steps on a small bundled corpus, then a chat (or three answers in a pipe).",
)  # fmt: skip
def demo(settings: DemoSettings) -> None:
    from chatbench.demo.show import demo

    raise typer.Exit(demo(settings))


@settings_command(
    app, PreprocessSettings, name="preprocess", positional="inputs",
    help="Turn text and dialogues (.txt, .md, .jsonl, folders) into a corpus folder.",
    epilog="Example: chatbench preprocess books/ chats.jsonl -o corpus --vocab-size 8192",
)  # fmt: skip
def preprocess(settings: PreprocessSettings) -> None:
    from chatbench.corpus.build import preprocess

    corpus = preprocess(settings)
    console.say(f"look at {corpus / 'report.html'} · then: chatbench pretrain -d {corpus} -o RUN")
    console.emit(str(corpus))


@settings_command(
    app, ScreenSettings, name="screen",
    help="Train a filter for bad content on labelled examples. Prints its folder.",
    epilog="Example: chatbench screen -d labelled.csv -o screens/mine --bad-label 1",
)  # fmt: skip
def screen(settings: ScreenSettings) -> None:
    from chatbench.corpus.cleaning.screening import train

    console.emit(str(train(settings)))


@settings_command(
    app, PretrainSettings, name="pretrain", resumable=True,
    help="Train a model from nothing on a corpus folder. Prints the run folder.",
    epilog="Example: chatbench pretrain -d corpus -o runs/base --minutes 10",
)  # fmt: skip
def pretrain(settings: PretrainSettings) -> None:
    _refuse_in_use(settings.out)
    from chatbench.train.machine import process_began
    from chatbench.train.recipes import pretrain

    run = pretrain(settings, process_began())
    if run is not None:
        console.emit(str(run))


@settings_command(
    app, FinetuneSettings, name="finetune", resumable=True,
    help="Train a model further on dialogues. Prints the run folder.",
    epilog="Example: chatbench finetune -m runs/base -d chats.jsonl -o runs/bot --epochs 3",
)  # fmt: skip
def finetune(settings: FinetuneSettings) -> None:
    _refuse_in_use(settings.out)
    from chatbench.train.machine import process_began
    from chatbench.train.recipes import finetune

    run = finetune(settings, process_began())
    if run is not None:
        console.emit(str(run))


def _refuse_in_use(run: str) -> None:
    """Before torch is loaded. Raises InUseError when another process trains in that folder."""
    from chatbench.storage import LOCK, FolderLock

    # Of several ranks only the first locks the folder, and later.
    if "RANK" not in os.environ and Path(run, LOCK).is_file():
        with FolderLock(Path(run)):
            pass


@settings_command(
    app, EvaluateSettings, name="evaluate",
    help="Judge a model by likelihood and by its replies. Prints the scores.",
    epilog="Example: chatbench evaluate -m runs/bot -d questions.jsonl --json",
)  # fmt: skip
def evaluate(settings: EvaluateSettings) -> None:
    from chatbench.evaluate.gate import require_met
    from chatbench.evaluate.run import evaluate
    from chatbench.evaluate.showing import show

    result = evaluate(settings)
    show(result, as_json=settings.json)
    require_met(result.missed)


@settings_command(
    app, ChatSettings, name="chat",
    help="Talk to a model: a conversation on a terminal, one reply for -p or piped text.",
    epilog="Examples: chatbench chat -m runs/bot · echo 'When do you open?' | chatbench chat -m"
    " runs/bot · chatbench chat -m runs/bot --jsonl < questions.jsonl",
)  # fmt: skip
def chat(settings: ChatSettings) -> None:
    from chatbench.chat.start import chat

    raise typer.Exit(chat(settings))


@settings_command(
    app, ClassifySettings, name="classify", positional="inputs",
    help="Label texts: a table, JSON Lines or lines in, the same with label and confidence out.",
    epilog="Examples: chatbench classify -m runs/intents mails.csv > labelled.csv · echo 'Where is"
    " my card?' | chatbench classify -m runs/bot --choice card --choice loan --json",
)  # fmt: skip
def classify(settings: ClassifySettings) -> None:
    from chatbench.classify.run import classify

    raise typer.Exit(classify(settings))


@settings_command(
    app, ExportSettings, name="export",
    help="Write a model for other programs: a GGUF file, or a plain folder with adapters merged.",
    epilog="Example: chatbench export -m runs/bot --to gguf -o bot.gguf --quantize q8_0 --verify",
)  # fmt: skip
def export(settings: ExportSettings) -> None:
    from chatbench.export.run import export

    console.emit(str(export(settings)))


@settings_command(
    app, ReportSettings, name="report", positional="paths",
    help="Make a page of a run, of several runs over each other, or of an evaluation. Prints its"
    " path.",
    epilog="Examples: chatbench report @latest --open · chatbench report runs/a runs/b -o ab.html",
)  # fmt: skip
def report(settings: ReportSettings) -> None:
    from chatbench.report.making import report

    report(settings)


@app.command("runs", context_settings=CONTEXT)
def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER] | compare RUN RUN... | tag RUN NAME",
            show_default=False,
            help="Without words: the runs in ./runs and in the folder CHATBENCH_RUNS",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="With tag: take the name away")] = False,
) -> None:
    """List runs, compare them, name them; @NAME, @latest and @best are understood as -m."""
    from chatbench.report.listing import runs

    runs(words or [], as_json=as_json, remove=remove)


@app.command("info", context_settings=CONTEXT)
def info(
    path: Annotated[
        str | None, typer.Argument(help="Corpus, run, model, adapter; without: the installation")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="What computes attention on this machine, and why")
    ] = False,
) -> None:
    """Say what a folder holds and what to do next."""
    from chatbench.info import info

    info(path, as_json, kernels)


def run(arguments: list[str] | None = None) -> int:
    """The whole program: exit code of `arguments`, one line for each user's mistake."""
    return _guarded(lambda: app(arguments, standalone_mode=False))


def _guarded(call: Callable[[], object]) -> int:
    try:
        result = call()
    except UserError as error:
        console.fail(str(error))
        return error.exit_code
    except typer.Exit as leaving:
        return leaving.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit):  # Typer makes the second of the first
        console.silence_stdout()
        return ExitCode.BROKEN_PIPE
    except MemoryError as error:
        console.fail(f"not enough memory: {error}; lower the batch or the model's size")
        return ExitCode.ENVIRONMENT
    except Exception as error:
        return _explain(error)
    return result if isinstance(result, int) else ExitCode.DONE


def _explain(error: Exception) -> int:
    """Usage errors of the command line, and what the operating system refuses."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        if message := error.format_message():  # none after the help that no arguments get
            console.fail(message)
        return int(error.exit_code)
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRORS:
        console.fail(str(EnvironmentFault(f"{error.strerror}: {error.filename or 'output'}")))
        return ExitCode.ENVIRONMENT
    if is_out_of_memory(error):
        console.fail("not enough memory for this; lower --micro-batch, --batch-size or the model")
        return ExitCode.ENVIRONMENT
    raise error


_ENVIRONMENT_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE,
    errno.ENOTDIR, errno.ENAMETOOLONG,
)  # fmt: skip
