"""One function per slash command; its docstring is its help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from chatbench.chat.session import ChatSession, Event
from chatbench.config import leaves
from chatbench.errors import UsageError, did_you_mean
from chatbench.settings import SamplingSettings, replace

Talk = Callable[[Callable[[], bool]], Iterator[Event]]  # told when to stop, it talks
Reply = Talk | str | None
Command = Callable[[ChatSession, str], Reply]


class Leave(Exception):
    """The person wants to go."""


def help_(session: ChatSession, argument: str) -> Reply:
    """show this list"""
    width = max(map(len, COMMANDS))
    lines = [f"/{name:<{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "Alt-Enter starts a new line; // begins a line with a slash"])


def exit_(session: ChatSession, argument: str) -> Reply:
    """leave (so does Ctrl-D)"""
    raise Leave


def clear(session: ChatSession, argument: str) -> Reply:
    """forget the conversation"""
    session.clear()
    return "cleared"


def system(session: ChatSession, argument: str) -> Reply:
    """TEXT: set the system prompt and start over; alone: show it; `clear`: remove it"""
    if not argument:
        return f"system: {session.system or '(none)'}"
    session.system = None if argument == "clear" else argument
    session.clear()
    return "system prompt removed" if session.system is None else "system prompt set"


def set_(session: ChatSession, argument: str) -> Reply:
    """NAME VALUE: change sampling, such as temperature 0.3; alone: show all"""
    current = msgspec.to_builtins(session.sampling)
    if not argument:
        return "\n".join(f"{name} {value}" for name, value in current.items())
    name, _, text = argument.replace("=", " ", 1).removeprefix("parameter ").partition(" ")
    name = _ALIASES.get(name, name).replace("-", "_")
    if name not in current:
        raise UsageError(f"there is no setting {name}", hint=did_you_mean(name, list(current)))
    value: object = text.strip()
    if name == "stop":
        value = [text.strip()] if text.strip() else []
    elif value in ("none", ""):
        value = None
    try:
        session.sampling = replace(session.sampling, **{name: _number(value)})
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} {text.strip()}: {str(error).partition(' - at')[0]}") from None
    return f"{name} {getattr(session.sampling, name)}"


def _number(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            return value


def retry(session: ChatSession, argument: str) -> Reply:
    """answer the last message anew"""
    return session.retry


def save(session: ChatSession, argument: str) -> Reply:
    """FILE: add the conversation to it as a line of training data"""
    if not argument:
        raise UsageError("/save needs a file name", hint="/save chat.jsonl")
    session.save(Path(argument).expanduser())
    return f"saved {argument}"


def load(session: ChatSession, argument: str) -> Reply:
    """FILE: go on with the conversation that was saved last"""
    if not argument:
        raise UsageError("/load needs a file name", hint="/load chat.jsonl")
    session.load(Path(argument).expanduser())
    return f"loaded {len(session.messages)} messages"


def show(session: ChatSession, argument: str) -> Reply:
    """the model, how full its context is, the system prompt"""
    return (
        f"model {session.folder}\ncontext {session.used} of {session.context} tokens\n"
        f"system {session.system or '(none)'}"
    )


COMMANDS: dict[str, Command] = {
    "help": help_,
    "exit": exit_,
    "clear": clear,
    "system": system,
    "set": set_,
    "show": show,
    "retry": retry,
    "save": save,
    "load": load,
}
_OTHER_NAMES = {"?": "help", "quit": "exit", "bye": "exit", "new": "clear", "regen": "retry"}
_ALIASES = {
    alias.removeprefix("--"): leaf.name
    for leaf in leaves(SamplingSettings)
    if leaf.meta is not None and leaf.meta.extra is not None
    for alias in leaf.meta.extra["names"]
    if alias.startswith("--")
}


def run_command(session: ChatSession, line: str) -> Reply:
    """Execute `/name argument`. Raises UsageError for a name that is none."""
    name, _, argument = line.removeprefix("/").partition(" ")
    name = _OTHER_NAMES.get(name, name)
    if name not in COMMANDS:
        hint = did_you_mean(name, list(COMMANDS))
        raise UsageError(f"there is no command /{name}", hint=hint.replace("mean ", "mean /"))
    return COMMANDS[name](session, argument.strip())
