"""The conversation on a terminal: what is typed goes in, streamed text comes out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import FrameType

from chatbench import console
from chatbench.chat.commands import run_command
from chatbench.chat.completing import completions
from chatbench.chat.display import Reply, Screen, Shown, lay_out, screen
from chatbench.chat.line_editor import LineEditor, edit_text, entered
from chatbench.chat.session import ChatSession, Event, Forgotten
from chatbench.chat.spoken import Draft, Leave
from chatbench.engine.engine import Completion, Piece
from chatbench.errors import ExitCode, UserError

STOPPED = "[stopped]"
Events = Iterator[Event | Shown]


_TERMINATED = 128 + signal.SIGTERM


class _Ended(SystemExit):
    """SIGTERM came. An event loop hands this kind on at once, whatever it is doing."""


class Interrupts:
    """While this is open, Ctrl-C sets a flag that the engine reads between tokens, and nothing
    else: an exception inside a step would leave the cache out of step with the text."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> Interrupts:
        self._previous = signal.signal(signal.SIGINT, self._ask)
        self._end_before = signal.signal(signal.SIGTERM, _end)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)
        signal.signal(signal.SIGTERM, self._end_before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed since `forget`."""
        return self._asked

    def forget(self) -> None:
        """What was pressed too late for the last reply does not stop the next one."""
        self._asked = False


def _end(number: int, frame: FrameType | None) -> None:
    """End by way of everything that sets the terminal back; killed, it would stay without echo."""
    raise _Ended


def repl(session: ChatSession, *, keep_history: bool) -> int:
    """Talk until /exit, Ctrl-D, or Ctrl-C twice at an empty prompt; the exit code."""
    editor = LineEditor(lambda line: completions(line, session), keep_history=keep_history)
    console.say(f"{session.folder} · /help shows the commands, Ctrl-D leaves", style="dim")
    try:
        with Interrupts() as interrupts:
            return _converse(session, editor, interrupts)
    except _Ended:
        return _TERMINATED


def _converse(session: ChatSession, editor: LineEditor, interrupts: Interrupts) -> int:
    warned = False
    while True:
        try:
            line = editor.read(ready=interrupts.forget)
        except EOFError:
            return ExitCode.DONE
        except KeyboardInterrupt:
            if warned:
                return ExitCode.INTERRUPTED
            warned = True
            console.say("Ctrl-C again leaves; so does Ctrl-D", style="dim")
            continue
        warned = False
        try:
            _turn(session, line, interrupts.asked)
        except Leave:
            return ExitCode.DONE
        except UserError as error:
            console.fail(str(error))


def _turn(session: ChatSession, line: str, stopped: Callable[[], bool]) -> None:
    """Answer a message, or do what a command says."""
    text, is_command = entered(line)
    if not text:
        return
    if not is_command:
        _talk(session, session.send(text, stopped))
        return
    outcome = run_command(session, text)
    if isinstance(outcome, Draft):
        _talk(session, _edited(session, outcome, stopped))
    elif isinstance(outcome, str):
        console.emit(console.visible(outcome))
    elif isinstance(outcome, Shown):
        console.emit(lay_out(outcome, screen()), end="")
    elif outcome is not None:
        _talk(session, outcome(stopped))


def _edited(session: ChatSession, draft: Draft, stopped: Callable[[], bool]) -> Events:
    """The reply to what comes back from the editor; none when nothing was changed."""
    text = edit_text(draft.text).strip()
    if not text or (draft.number is not None and text == draft.text.strip()):
        console.say("nothing was changed", style="dim")
    elif draft.number is None:
        yield from session.send(text, stopped)
    else:
        yield from session.edit(draft.number, text, stopped)


def _screen(session: ChatSession) -> Screen:
    on = screen()
    return on._replace(markdown=on.markdown and session.view.markdown)


def _talk(session: ChatSession, events: Events) -> None:
    """Show a reply while it is written. However it ends, the terminal has its own colours."""
    reply: Reply | None = None
    try:
        for event in events:
            if isinstance(event, Forgotten):
                _say_forgotten(event)
            elif isinstance(event, Shown):
                console.emit(lay_out(event, screen()), end="")
            else:
                reply = reply or Reply(_write, _screen(session))
                if isinstance(event, Piece):
                    reply.feed(event.text)
                    continue
                reply.finish(STOPPED if event.finish_reason == "cancelled" else "")
                reply = None
                _say_figures(session, event)
    finally:
        if reply is not None:
            reply.finish()


def _write(text: str) -> None:
    console.emit(text, end="")


def _say_forgotten(event: Forgotten) -> None:
    one = event.turns == 1
    left = "exchange no longer fits and is" if one else "exchanges no longer fit and are"
    console.say(f"the oldest {event.turns} {left} left out")


def _say_figures(session: ChatSession, reply: Completion) -> None:
    if session.view.quiet:
        return
    rate = len(reply.ids) / reply.seconds if reply.seconds else 0.0
    console.say(
        f"    {len(reply.ids)} tokens · {rate:.0f} tok/s · "
        f"first {1000 * reply.first_seconds:.0f} ms · context {session.used}/{session.context}"
        + "".join(f" · {name}: {value}" for name, value in session.tags.items()),
        style="dim",
    )
