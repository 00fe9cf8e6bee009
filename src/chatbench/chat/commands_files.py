"""Slash commands about files and sessions."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from chatbench.chat import sessions as kept
from chatbench.chat.commands_tree import excerpt
from chatbench.chat.session import ChatSession
from chatbench.chat.spoken import Reply, file_to_write, typed_path
from chatbench.conversation import Message, as_json
from chatbench.errors import UsageError, did_you_mean
from chatbench.storage import write_file

_LARGEST_TEXT = 1 << 24


def save(session: ChatSession, argument: str) -> Reply:
    """FILE: add the conversation to it as a line of training data"""
    if not argument:
        where = session.file.path if session.file is not None and session.file.name else None
        hint = f"{where} is kept by itself" if where else "/save chat.jsonl"
        raise UsageError("/save needs a file name", hint=hint)
    session.save(file_to_write(argument))
    return f"saved {argument}"


def load(session: ChatSession, argument: str) -> Reply:
    """FILE or session: go on with the conversation that was saved last"""
    if not argument:
        raise UsageError("/load needs a file name", hint="/load chat.jsonl")
    path = typed_path(argument)
    folder = kept.sessions_folder()
    if (
        not os.path.exists(path)
        and folder is not None
        and argument in (known := kept.names(folder))
    ):
        if session.file is not None:
            session.keep_in(session.file.folder, argument)
        else:
            session.load(folder / f"{argument}{kept.SUFFIX}")
    elif not os.path.exists(path) and path.name == argument and folder is not None and known:
        hint = did_you_mean(argument, known)
        raise UsageError(f"{argument} is neither a file nor a session", hint=hint)
    else:
        session.load(path)
    return f"loaded {len(session.messages)} messages"


def sessions(session: ChatSession, argument: str) -> Reply:
    """list the conversations that were kept, the newest first"""
    folder = kept.sessions_folder()
    found = kept.listed(folder) if folder is not None else []
    if not found:
        return "no conversation was kept yet"
    current = session.file.name if session.file is not None else ""
    lines = [f"in {folder}"]
    for entry in found:
        mark = "*" if entry.name == current else " "
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.written))
        begins = excerpt(entry.begins)
        lines.append(f"{mark} {entry.name}  {written}  {entry.messages} messages  {begins}")
    return "\n".join(lines)


def export(session: ChatSession, argument: str) -> Reply:
    """FILE: write the conversation to a new file, .md to read or .jsonl to train on"""
    path = file_to_write(argument)
    if path.suffix not in (".md", ".markdown", ".jsonl"):
        raise UsageError(f"/export {argument}: the name does not say as what",
                         hint="end it in .md or .jsonl")  # fmt: skip
    messages = [*session.opening(), *session.messages]
    if not session.messages:
        raise UsageError("there is nothing to export", hint="say something first")
    if os.path.exists(path):
        raise UsageError(f"{argument} exists already", hint="choose another name")
    if path.suffix == ".jsonl":
        write_file(path, msgspec.json.encode({"messages": as_json(messages)}) + b"\n")
    else:
        write_file(path, markdown(messages).encode())
    return f"exported {argument}"


_SPEAKERS = {"system": "System", "user": "You", "assistant": "Reply", "tool": "Tool"}


def markdown(messages: list[Message]) -> str:
    """The conversation as a document; contents as they are."""
    return "\n".join(f"## {_SPEAKERS[m.role]}\n\n{m.content.strip()}\n" for m in messages)


def read(session: ChatSession, argument: str) -> Reply:
    """FILE: put a file's text into your next message; `none` takes it out again"""
    if not argument:
        raise UsageError("/read needs a file name", hint="/read notes.txt")
    if argument == "none" and not os.path.exists("none"):
        session.attached.clear()
        return "the next message is only what you type"
    text = _text_of(typed_path(argument)).strip()
    if not text:
        raise UsageError(f"{argument} is empty", hint="choose another file")
    tokens = len(session.opened.tokenizer.encode(text))
    together = [*session.opening(), Message("user", "\n\n".join([*session.attached, text]))]
    needed = session.tokens(together)
    if needed > session.room():
        raise UsageError(
            f"{argument} has {tokens} tokens; a message with it takes {needed}, and beside a reply "
            f"{session.room()} of the model's context of {session.context} are left",
            hint="read a shorter file",
        )
    session.attached.append(text)
    return f"{argument}: {tokens} tokens go with your next message; /read none takes them out"


def _text_of(path: Path) -> str:
    """Raises UsageError for what cannot be read or is no text."""
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise UsageError(f"{path} is larger than {_LARGEST_TEXT >> 20} MB", hint="cut it")
        if not path.is_file():
            raise UsageError(f"{path} is no file", hint="choose a text file")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    from chatbench.corpus.sources.encodings import detect

    codec = detect(data[: 1 << 16]).codec
    if codec is None:
        raise UsageError(f"{path} is no text", hint="choose a text file")
    return data.decode(codec, errors="replace").removeprefix("\ufeff")
