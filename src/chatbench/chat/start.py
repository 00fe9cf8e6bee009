"""chat: a conversation, one reply, or a stream of them, by what stdin and stdout are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chatbench import console
from chatbench.errors import UsageError
from chatbench.settings import ChatSettings

if TYPE_CHECKING:
    from chatbench.chat.asking import Asker
    from chatbench.chat.forms import Form
    from chatbench.model.folder import OpenedModel


def chat(settings: ChatSettings) -> int:
    """Run the verb; returns the exit code."""
    _check(settings)
    # Read before the model: whoever is mistaken should not wait for it.
    prompt = None if settings.jsonl else _prompt(settings)
    if (settings.jsonl or prompt is not None) and (settings.continue_ or settings.session):
        raise UsageError(
            "--continue and --session are for conversations on a terminal",
            hint="leave them out, or give --jsonl the messages",
        )
    opened = _open(settings)
    if settings.jsonl:
        return _answer_lines(settings, opened)
    if prompt is not None:
        from chatbench.chat.pipe import answer

        return answer(_asker(settings, opened), prompt, as_json=settings.json)
    return _converse(settings, opened)


def _open(settings: ChatSettings) -> OpenedModel:
    from chatbench.model.device import pick_device
    from chatbench.model.folder import open_model

    opened = open_model(
        settings.model, pick_device(settings.device),
        quantize=settings.quantize, template=settings.template,
    )  # fmt: skip
    if not settings.raw:
        opened.tokenizer.template  # noqa: B018  a model without one is refused before any talk
    return opened


def _converse(settings: ChatSettings, opened: OpenedModel) -> int:
    from chatbench.chat.keeping import begin
    from chatbench.chat.repl import repl
    from chatbench.chat.session import ChatSession
    from chatbench.text.tags import parse_tags, unlearned

    tags = parse_tags(settings.tag)
    session = ChatSession(opened, settings.sampling, settings.system, tags)
    begin(session, settings)
    if tags:
        session.put_tags(tags)
    for line in unlearned(tags, session.known_tags):
        console.notice(line)
    try:
        return repl(session, keep_history=settings.history)
    finally:
        session.close()


def _asker(settings: ChatSettings, opened: OpenedModel) -> Asker:
    from chatbench.chat.asking import Asker
    from chatbench.engine.engine import Engine
    from chatbench.model.folder import read_provenance
    from chatbench.text.tags import known_in, parse_tags

    rows = settings.batch_size if settings.jsonl else min(settings.batch_size, settings.samples)
    return Asker(
        Engine(opened.model, opened.tokenizer, rows), settings.sampling, system=settings.system,
        raw=settings.raw, samples=settings.samples, model=settings.model, form=_form(settings),
        tags=parse_tags(settings.tag), known_tags=known_in(read_provenance(opened.folder)),
    )  # fmt: skip


def _form(settings: ChatSettings) -> Form:
    from chatbench.chat.forms import Form, read_schema

    schema = None if settings.json_schema is None else read_schema(settings.json_schema)
    return Form(tuple(settings.choice), schema)


def _answer_lines(settings: ChatSettings, opened: OpenedModel) -> int:
    from chatbench.chat.lines import JsonLines
    from chatbench.chat.replies import ReplyFile

    asker, stdin = _asker(settings, opened), sys.stdin.fileno()
    if settings.out is None:
        return JsonLines(asker, settings.batch_size).run(stdin)
    out = ReplyFile(Path(settings.out), resume=settings.resume)
    lines = JsonLines(asker, settings.batch_size, out)
    try:
        code = lines.run(stdin)
    finally:
        out.close()
        there = f", {lines.passed_over} were there" if lines.passed_over else ""
        console.say(f"{lines.written} replies added to {settings.out}{there}")
    return code


def _check(settings: ChatSettings) -> None:
    """Raise UsageError for flags that say two things, or nothing here."""
    if settings.jsonl and settings.prompt not in (None, "-"):
        raise UsageError("--jsonl reads its prompts from stdin", hint="leave -p out, or --jsonl")
    if settings.jsonl and settings.json:
        raise UsageError("--jsonl answers in JSON already", hint="leave --json out, or --jsonl")
    if settings.jsonl and sys.stdin is None:
        raise UsageError("stdin is closed", hint="pipe requests in, one JSON object a line")
    if settings.out is not None and not settings.jsonl:
        raise UsageError("--out is for the replies of --jsonl", hint="add --jsonl, or use > FILE")
    if settings.resume and settings.out is None:
        raise UsageError("--resume needs the file of replies", hint="add --out FILE")
    if settings.continue_ and settings.session is not None:
        raise UsageError("--continue and --session name two conversations", hint="leave one out")
    if settings.raw and settings.system is not None and not settings.jsonl:
        raise UsageError("a text that --raw continues has no --system prompt", hint="leave it out")
    if settings.raw and settings.tag and not settings.jsonl:
        raise UsageError("a text that --raw continues has no --tag", hint="leave it out")
    _check_tags(settings.tag)
    if settings.choice and settings.json_schema is not None:
        raise UsageError("--choice and --json-schema ask for two forms", hint="leave one out")
    if settings.sampling.logprobs is not None and not (settings.json or settings.jsonl):
        raise UsageError("--logprobs are told in JSON only", hint="add --json or --jsonl")


def _check_tags(given: list[str]) -> None:
    if given:
        from chatbench.text.tags import parse_tags

        parse_tags(given)


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
    for name, given in (
        ("--json", settings.json), ("--samples", settings.samples > 1),
        ("--choice", settings.choice), ("--json-schema", settings.json_schema),
    ):  # fmt: skip
        if given:
            raise UsageError(f"{name} needs a prompt", hint="give -p TEXT or pipe text in")
    if not console.stdout_is_terminal():
        raise UsageError("a conversation needs a terminal", hint="give -p TEXT or pipe text in")
    return None


def _read_stdin() -> str:
    """Piped text, without the mark that some editors put at its beginning."""
    if sys.stdin is None:
        return ""
    return sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
