"""chat: a conversation, one reply, or a stream of them, by what stdin and stdout are."""

from __future__ import annotations

import sys

from chatbench import console
from chatbench.chat.pipe import JsonLines, continue_text, reply_once
from chatbench.chat.session import ChatSession
from chatbench.errors import UsageError
from chatbench.model.device import pick_device
from chatbench.model.folder import open_model
from chatbench.settings import ChatSettings


def chat(settings: ChatSettings) -> int:
    """Run the verb; returns the exit code."""
    _check(settings)
    prompt = None if settings.jsonl else _prompt(settings)
    opened = open_model(
        settings.model, pick_device(settings.device),
        quantize=settings.quantize, template=settings.template,
    )  # fmt: skip
    if not settings.raw:
        opened.tokenizer.template  # noqa: B018  a model without one is refused before any talk
    if settings.jsonl:
        lines = JsonLines(
            opened, settings.sampling, settings.system,
            raw=settings.raw, batch_size=settings.batch_size,
        )  # fmt: skip
        return lines.run(sys.stdin.fileno())
    if prompt is not None and settings.raw:
        return continue_text(opened, settings.sampling, prompt)
    session = ChatSession(opened, settings.sampling, settings.system)
    if prompt is not None:
        return reply_once(session, prompt)
    from chatbench.chat.repl import repl

    return repl(session, keep_history=settings.history)


def _check(settings: ChatSettings) -> None:
    """Raise UsageError for flags that say two things, or nothing here."""
    if settings.jsonl and settings.prompt not in (None, "-"):
        raise UsageError("--jsonl reads its prompts from stdin", hint="leave -p out, or --jsonl")
    if settings.jsonl and sys.stdin is None:
        raise UsageError("stdin is closed", hint="pipe requests in, one JSON object a line")
    if settings.raw and settings.system is not None and not settings.jsonl:
        raise UsageError("a text that --raw continues has no --system prompt", hint="leave it out")


def _prompt(settings: ChatSettings) -> str | None:
    """What to answer: -p, else piped text; None for a conversation. Raises UsageError.

    With -p stdin is left alone: in a shell loop it belongs to the loop.
    """
    piped = settings.prompt == "-" or not console.stdin_is_terminal()
    text = None if settings.prompt == "-" else settings.prompt
    if text is None and piped:
        text = _read_stdin()
    if text and text.strip():
        # What a shell passes need not be UTF-8.
        return text.encode("utf-8", errors="replace").decode("utf-8")
    if piped or settings.raw or settings.prompt is not None:
        raise UsageError("there is no text to answer", hint="give -p TEXT or pipe text in")
    if not console.stdout_is_terminal():
        raise UsageError("a conversation needs a terminal", hint="give -p TEXT or pipe text in")
    return None


def _read_stdin() -> str:
    if sys.stdin is None:
        return ""
    return sys.stdin.buffer.read().decode("utf-8", errors="replace")
