"""The slash commands by name: one function each; its docstring is its help."""

from __future__ import annotations

from chatbench.chat import (
    commands_files,
    commands_model,
    commands_settings,
    commands_tree,
)
from chatbench.chat.session import ChatSession
from chatbench.chat.spoken import Command, Draft, Leave, Reply, Talk
from chatbench.errors import UsageError, did_you_mean

__all__ = ["COMMANDS", "OTHER_NAMES", "Command", "Draft", "Leave", "Reply", "Talk", "run_command"]


def help_(session: ChatSession, argument: str) -> Reply:
    """show this list"""
    width = max(map(len, COMMANDS))
    lines = [f"/{name:<{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    keys = "Alt-Enter starts a new line; // begins a line with a slash"
    others = ", ".join(f"/{name} = /{meant}" for name, meant in OTHER_NAMES.items())
    return "\n".join([*lines, "", keys, others])


def exit_(session: ChatSession, argument: str) -> Reply:
    """leave (so does Ctrl-D)"""
    raise Leave


def clear(session: ChatSession, argument: str) -> Reply:
    """begin a new conversation"""
    session.clear()
    return "cleared"


COMMANDS: dict[str, Command] = {
    "help": help_,
    "exit": exit_,
    "clear": clear,
    "system": commands_settings.system,
    "set": commands_settings.set_,
    "show": commands_settings.show,
    "tags": commands_settings.tags,
    "retry": commands_tree.retry,
    "undo": commands_tree.undo,
    "redo": commands_tree.redo,
    "edit": commands_tree.edit,
    "branch": commands_tree.branch,
    "branches": commands_tree.branches,
    "switch": commands_tree.switch,
    "save": commands_files.save,
    "load": commands_files.load,
    "sessions": commands_files.sessions,
    "export": commands_files.export,
    "read": commands_files.read,
    "why": commands_model.why,
    "compare": commands_model.compare,
    "good": commands_model.good,
    "bad": commands_model.bad,
    "prefer": commands_model.prefer,
}
OTHER_NAMES = {
    "?": "help", "quit": "exit", "bye": "exit", "new": "clear", "regen": "retry", "tag": "tags",
}  # fmt: skip


def run_command(session: ChatSession, line: str) -> Reply:
    """Execute `/name argument`, or `/column value` for a tag that the model has learned. Raises
    UsageError for a name that is none."""
    words = line.removeprefix("/").split(maxsplit=1) if line.strip("/ ") else [""]
    name, argument = words[0], words[1] if len(words) > 1 else ""
    name = OTHER_NAMES.get(name, name)
    if name not in COMMANDS and name in session.known_tags:
        return commands_settings.tags(session, f"{name} {argument or 'none'}")
    if name not in COMMANDS:
        known = [*COMMANDS, *(other for other in OTHER_NAMES if other.isalpha())]
        hint = did_you_mean(name, known).replace("mean ", "mean /").replace("see --", "see /")
        raise UsageError(f"there is no command /{name}", hint=hint)
    return COMMANDS[name](session, argument.strip())
