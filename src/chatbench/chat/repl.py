"""The conversation on a terminal: prompt_toolkit in, streamed text out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from chatbench import console
from chatbench.chat.commands import COMMANDS, Leave, run_command
from chatbench.chat.session import ChatSession, Event, Forgotten
from chatbench.engine.engine import Completion, Piece
from chatbench.errors import ExitCode, UserError

PROMPT = ">>> "


def repl(session: ChatSession, *, keep_history: bool) -> int:
    """Talk until /exit, Ctrl-D, or Ctrl-C twice at an empty prompt; the exit code."""
    line_editor = _line_editor(keep_history)
    console.say(f"{session.folder} · /help shows the commands, Ctrl-D leaves", style="dim")
    interrupted = False
    while True:
        try:
            line = line_editor.prompt(PROMPT).strip()
        except EOFError:
            return ExitCode.DONE
        except KeyboardInterrupt:
            if interrupted:
                return ExitCode.INTERRUPTED
            interrupted = True
            console.say("Ctrl-C again leaves; so does Ctrl-D", style="dim")
            continue
        interrupted = False
        if not line:
            continue
        try:
            _turn(session, line)
        except Leave:
            return ExitCode.DONE
        except UserError as error:
            console.fail(str(error))


def _turn(session: ChatSession, line: str) -> None:
    with _stop_flag() as stopped:
        if line.startswith("/") and not line.startswith("//"):
            outcome = run_command(session, line)
            if isinstance(outcome, str):
                console.emit(console.visible(outcome))
                return
            if outcome is None:
                return
            events = outcome(stopped)
        else:
            text = line.removeprefix("/") if line.startswith("//") else line
            events = session.send(text, stopped)
        _print_reply(session, events, stopped)


def _print_reply(
    session: ChatSession, events: Iterator[Event], stopped: Callable[[], bool]
) -> None:
    begun = time.monotonic()
    first = None
    for event in events:
        if isinstance(event, Forgotten):
            left = (
                "exchange no longer fits and is"
                if event.turns == 1
                else "exchanges no longer fit and are"
            )
            console.say(f"the oldest {event.turns} {left} left out")
        elif isinstance(event, Piece):
            first = first if first is not None else time.monotonic() - begun
            console.emit(console.visible(event.text), end="")
        else:
            console.emit(" [stopped]" if event.finish_reason == "cancelled" else "")
            _print_figures(session, event, first or 0.0, time.monotonic() - begun)


def _print_figures(session: ChatSession, reply: Completion, first: float, total: float) -> None:
    rate = len(reply.ids) / total if total else 0.0
    console.say(
        f"    {len(reply.ids)} tokens · {rate:.0f} tok/s · first {1000 * first:.0f} ms · "
        f"context {session.used}/{session.context}",
        style="dim",
    )


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """While a reply is written, Ctrl-C sets a flag that the engine reads between tokens."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _line_editor(keep_history: bool) -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("enter")
    def submit(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=_history(keep_history),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
        enable_history_search=True,
    )


def history_path() -> Path:
    """Where typed lines are kept: CHATBENCH_HOME, else XDG's state folder."""
    home = os.environ.get("CHATBENCH_HOME")
    if home:
        return Path(home, "history")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "chatbench", "history")


def _history(keep: bool) -> History:
    if not keep:
        return InMemoryHistory()
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError:
        console.notice(f"{path} cannot be written, so what you type is not kept")
        return InMemoryHistory()
    return FileHistory(str(path))
