"""What Tab offers: commands, settings, branches, sessions and paths."""

from __future__ import annotations

import os

from chatbench.chat.commands import COMMANDS, OTHER_NAMES
from chatbench.chat.commands_settings import SHOWN, TAG, names
from chatbench.chat.session import ChatSession, View
from chatbench.chat.sessions import names as session_names
from chatbench.chat.sessions import sessions_folder

_MOST_PATHS = 200


def completions(line: str, session: ChatSession) -> list[str]:
    """What the last word of `line`, the text before the cursor, may become: whole words.

    A path counts as one word, spaces included. Nothing for a line that is no command.
    """
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return []
    name, space, argument = line[1:].partition(" ")
    if not space:
        known = [*COMMANDS, *(other for other in OTHER_NAMES if other.isalpha())]
        known += [column for column in session.known_tags if " " not in column]
        return [f"/{known_name}" for known_name in known if known_name.startswith(name)]
    name, argument = OTHER_NAMES.get(name, name), argument.lstrip()
    offered = _offered(name, argument, session)
    last = argument if name in _PATHS else argument.rpartition(" ")[2]
    return [word for word in dict.fromkeys(offered) if word.startswith(last)]


_PATHS = ("save", "load", "export", "read", "compare")


def _offered(name: str, argument: str, session: ChatSession) -> list[str]:
    if name in _PATHS:
        found = _paths(argument)
        folder = sessions_folder() if name == "load" else None
        return [*session_names(folder), *found] if folder is not None else found
    words = argument.removeprefix("parameter ").split(" ")
    if name == "set":
        if len(words) == 1:
            tags = dict.fromkeys([*session.known_tags, *session.tags])
            return [*names(), *(f"{TAG}{tag}" for tag in tags)]
        if words[0].startswith(TAG):
            return _values(session, words[0].removeprefix(TAG), words[1:])
        return ["on", "off"] if words[0] in View.__struct_fields__ and len(words) == 2 else []
    if name == "tags":
        known = list(dict.fromkeys([*session.known_tags, *session.tags]))
        return known if len(words) == 1 else _values(session, words[0], words[1:])
    if name in session.known_tags:
        return _values(session, name, words)
    if len(words) > 1:
        return []
    tree = session.conversation
    words_of = {
        "show": list(SHOWN),
        "switch": [*tree.branches, *(f"#{number}" for number in tree.loose_ends())],
        "system": ["clear"],
        "edit": [str(n) for n in range(1, len(tree.path()) + 1)],
        "prefer": _replies(session),
    }
    return words_of.get(name, [])


def _values(session: ChatSession, column: str, typed: list[str]) -> list[str]:
    """What a tag may be; of values of several words the one that is being typed."""
    begun = " ".join(typed[:-1])
    head = f"{begun} " if begun else ""
    known = [*session.known_tags.get(column, {}), "none"]
    return [value.removeprefix(head) for value in known if value.startswith(head)]


def _replies(session: ChatSession) -> list[str]:
    replies = [t for t in session.conversation.path() if t.message.role == "assistant"]
    count = len(session.conversation.alternatives(replies[-1])) if replies else 0
    return [str(number) for number in range(1, count + 1)]


def _paths(typed: str) -> list[str]:
    """Entries of the folder that is being typed, folders with a slash; hidden ones when asked."""
    folder, _, begun = typed.rpartition("/")
    head = f"{folder}/" if "/" in typed else ""
    try:
        with os.scandir(os.path.expanduser(head or ".")) as entries:
            found = sorted(
                f"{head}{entry.name}{'/' if entry.is_dir() else ''}"
                for entry in entries
                if entry.name.startswith(begun)
                and (begun.startswith(".") or not entry.name.startswith("."))
                and entry.name.isprintable()
            )
    except (OSError, ValueError):
        return []
    return found[:_MOST_PATHS]
