"""One prompt answered without a terminal: as text while it comes, or as JSON at the end."""

from __future__ import annotations

from chatbench import console
from chatbench.chat.asking import Asker, json_line
from chatbench.chat.forms import drawn
from chatbench.chat.interrupt import Interrupt
from chatbench.engine.engine import Completion, Piece, Request
from chatbench.errors import ExitCode


def answer(asker: Asker, text: str, *, as_json: bool = False) -> int:
    """The reply to `text`, or what comes after it, on stdout; several samples one after another.

    As JSON: one object, or a list of them. At SIGINT what is finished is written, and
    KeyboardInterrupt raised. Raises UsageError for a text that cannot be answered.
    """
    requests = [r._replace(key=key) for key, r in enumerate(asker.text(text).requests)]
    with Interrupt() as interrupt:
        if as_json:
            _as_json(asker, requests, interrupt)
        else:
            _as_text(asker, requests, interrupt)
    interrupt.raise_if_asked()
    return ExitCode.DONE


def _as_text(asker: Asker, requests: list[Request], interrupt: Interrupt) -> None:
    """The first sample streams; those computed beside it follow, a blank line between them."""
    held = {request.key: "" for request in requests}
    ended: set[int] = set()
    shown = 0
    for event in asker.engine.run(_drawn(asker, requests), lambda: interrupt.asked):
        if isinstance(event, Piece):
            if event.key == shown:
                console.emit(console.visible(event.text), end="")
            else:
                held[event.key] += event.text
        elif event.finish_reason != "cancelled" or event.key == shown:
            ended.add(event.key)
        while shown in ended:
            console.emit("")
            later = [key for key in held if key > shown and (key in ended or not interrupt.asked)]
            shown = min(later, default=len(requests))
            if shown < len(requests):
                console.emit("\n" + console.visible(held[shown]), end="")


def _as_json(asker: Asker, requests: list[Request], interrupt: Interrupt) -> None:
    done: dict[int, Completion] = {}
    for event in asker.engine.run(_drawn(asker, requests), lambda: interrupt.asked):
        if isinstance(event, Completion) and event.finish_reason != "cancelled":
            done[event.key] = event
    rows = [asker.told(requests[key], done[key]) for key in sorted(done)]
    if rows:
        console.emit(json_line(rows[0] if len(requests) == 1 else rows))


def _drawn(asker: Asker, requests: list[Request]) -> list[Request]:
    return [drawn(asker.engine, request) for request in requests]
