"""Conversations on disk: a file each, JSON Lines that are training data as they are.

A line is a branch: {"messages": [...]}. Every message carries its id and its parent's, which
readers of training data pass over; the first message of the first line also carries what belongs
to the session as a whole, and the turns that are on no branch. A reply that two branches share, and
one that was interrupted, have weight 0 where they would be learned twice, or half.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench.chat.tree import Conversation, Turn
from chatbench.conversation import Message, parse_messages
from chatbench.errors import EnvironmentFault, InUseError, UsageError
from chatbench.storage import FolderLock, disk_errors, new_file

SUFFIX = ".jsonl"
_LONGEST_NAME = 80
_MOST_COPIES = 1000
_LARGEST_FILE = 1 << 28


def state_folder() -> Path | None:
    """Where chats are kept: CHATBENCH_HOME, else XDG's state folder; None without a home."""
    if home := os.environ.get("CHATBENCH_HOME"):
        return Path(home)
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # the XDG specification has others ignored
        return Path(state, "chatbench")
    if own := os.environ.get("HOME"):
        return Path(own, ".local", "state", "chatbench")
    return None


def sessions_folder() -> Path | None:
    folder = state_folder()
    return None if folder is None else folder / "sessions"


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` atomically, readable by its owner alone. Raises EnvironmentFault."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with new_file(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(data)


# ---- one session as bytes


class Stored(NamedTuple):
    """What a session's file holds."""

    conversation: Conversation
    system: str | None
    tags: dict[str, str]


def encode(stored: Stored, opening: str | None) -> bytes:
    """The file's bytes; `opening` is the system turn as the model reads it, tags included."""
    conversation = stored.conversation
    lines = _lines(conversation)
    written = {turn.id for path in lines for turn in path}
    about = {
        "branches": conversation.branches,
        "current": conversation.current,
        "system": stored.system,
        "tags": stored.tags,
        "aside": [_entry(t) for t in conversation.turns.values() if t.id not in written],
    }
    data: list[bytes] = []
    learned: set[int] = set()
    for path in lines:
        entries = [_entry(turn, turn.id in learned) for turn in path]
        learned |= {turn.id for turn in path}
        if opening or not entries:
            entries.insert(0, {"role": "system", "content": opening or "", "id": 0, "parent": 0})
        if not data:
            entries[0]["session"] = about
        data.append(msgspec.json.encode({"messages": entries}) + b"\n")
    return b"".join(data)


def _lines(conversation: Conversation) -> list[list[Turn]]:
    """The paths of the branches up to their last replies; one that another repeats is left out."""
    paths = []
    for tip in dict.fromkeys((conversation.tip, *conversation.branches.values())):
        path = conversation.path(tip)
        while path and path[-1].message.role != "assistant":
            path.pop()
        if path:
            paths.append(path)
    ends = {turn.id for path in paths for turn in path[:-1]}
    unique = {path[-1].id: path for path in paths if path[-1].id not in ends}
    return [*unique.values()] or [conversation.path()]


def _entry(turn: Turn, known: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": turn.message.role, "content": turn.message.content}
    learns = turn.message.role == "assistant"
    if not turn.message.weight or (learns and (known or turn.stopped)):
        entry["weight"] = 0
    entry |= {"id": turn.id, "parent": turn.parent}
    if turn.stopped:
        entry["stopped"] = True
    if turn.good is not None:
        entry["good"] = turn.good
    return entry


def decode(data: bytes) -> Stored:
    """The session in a file's bytes; of a file with other conversations, the last one.

    Raises ValueError saying what is off.
    """
    lines = [line for line in data.splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    about = _about(lines[0])
    if about is None:
        messages = list(parse_messages(_messages(lines[-1])))
        system = messages.pop(0).content if messages[0].role == "system" else None
        return Stored(Conversation(messages), system, {})
    entries = [entry for line in lines for entry in _messages(line)]
    return _assembled(about, entries)


def _about(line: bytes) -> dict[str, Any] | None:
    """What the first line says of the session; None where another program wrote it."""
    try:
        first = _messages(line)[0]
    except ValueError:
        return None
    about = first.get("session") if isinstance(first, dict) else None
    return about if isinstance(about, dict) else None


def _messages(line: bytes) -> list[Any]:
    row = msgspec.json.decode(line)
    found = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(found, list) or not found:
        raise ValueError('a line is not {"messages": [...]}')
    return found


class _About(msgspec.Struct):
    branches: dict[str, int]
    current: str
    aside: list[dict[str, Any]]
    system: str | None = None
    tags: dict[str, str] = {}


def _assembled(raw: dict[str, Any], entries: list[Any]) -> Stored:
    about = msgspec.convert(raw, _About)
    conversation = Conversation()
    turns: dict[int, Turn] = {}
    for entry in [*entries, *about.aside]:
        turn = _turn(entry)
        # On a later line the weight says only that the reply was learned already.
        if turn is not None:
            turns.setdefault(turn.id, turn)
    for number in sorted(turns):
        if not (turns[number].parent in conversation.turns or turns[number].parent == 0):
            raise ValueError(f"message {number} follows one that is not there")
        conversation.turns[number] = turns[number]
    if about.current not in about.branches or not all(
        tip in turns or tip == 0 for tip in about.branches.values()
    ):
        raise ValueError("a branch ends in a message that is not there")
    conversation.branches, conversation.current = about.branches, about.current
    return Stored(conversation, about.system, about.tags)


class _Entry(msgspec.Struct):
    id: int
    parent: int
    stopped: bool = False
    good: bool | None = None


def _turn(entry: object) -> Turn | None:
    """None for the system turn, which is the session's."""
    (message,) = parse_messages([entry])
    kept = msgspec.convert(entry, _Entry)
    if kept.id == 0:
        return None
    if kept.stopped:  # weight 0 in the file only
        message = Message(message.role, message.content)
    return Turn(kept.id, kept.parent, message, kept.stopped, kept.good)


def read(path: Path) -> Stored:
    """The session in a file. Raises UsageError."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MB")
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UsageError(f"{path} holds no conversation: {error}") from error


# ---- the folder of sessions


class Listed(NamedTuple):
    """A session in the folder: when it was written (seconds since 1970), how many messages."""

    name: str
    written: float
    messages: int
    begins: str


def names(folder: Path) -> list[str]:
    """Sessions by name, the newest first."""
    found = []
    with suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                if path.is_file() and not path.name.startswith("."):
                    found.append((-path.stat().st_mtime_ns, path.name.removesuffix(SUFFIX)))
    return [name for _, name in sorted(found)]


def listed(folder: Path) -> list[Listed]:
    """What is in the folder, the newest first; files that cannot be read are left out."""
    entries = []
    for name in names(folder):
        path = folder / f"{name}{SUFFIX}"
        with suppress(UsageError, OSError):
            said = read(path).conversation.messages()
            begins = next((" ".join(m.content.split()) for m in said if m.role == "user"), "")
            entries.append(Listed(name, path.stat().st_mtime, len(said), begins))
    return entries


def check_name(name: str) -> str:
    """`name` as a session's. Raises UsageError for what cannot be a file's name."""
    wrong = (
        not name.strip() or name != name.strip() or name.startswith((".", "-"))
        or "/" in name or "\\" in name or not name.isprintable()
        or len(name) > _LONGEST_NAME or len(name.encode(errors="replace")) > 200
    )  # fmt: skip
    if wrong:
        raise UsageError(f"{name!r} is no name for a session", hint="such as tea or 茶")
    return name


class SessionFile:
    """Where one session is written after every message, by one chat at a time.

    A disk that refuses is told once, to `tell`, and the conversation goes on.
    """

    def __init__(self, folder: Path, name: str = "", *, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.name = name
        self._tell = tell
        self._lock: FolderLock | None = None
        self._failed = False

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}{SUFFIX}"

    def claim(self) -> bool:
        """Take the name, or with a notice the next free one when another chat has it; without
        a name, one made of the time. Whether the name is the one that was asked for.

        Raises EnvironmentFault.
        """
        if self._lock is not None:
            return True
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        asked = self.name
        wanted = asked or time.strftime("%Y-%m-%d-%H%M%S")
        for number in range(1, _MOST_COPIES):
            self.name = wanted if number == 1 else f"{wanted}-{number}"
            # Only the name that was asked for may be there already.
            new = not asked or number > 1
            if (new and os.path.lexists(self.path)) or not self._take(self.name):
                continue
            if asked and self.name != asked:
                self._tell(f"session {asked} is open in another chat; this one is {self.name}")
            return self.name == asked
        raise EnvironmentFault(f"{self.folder} has no free name like {wanted}")

    def _take(self, name: str) -> bool:
        lock = FolderLock(self.folder / f".{name}.open")
        try:
            lock.__enter__()
        except InUseError:
            return False
        self._lock = lock
        return True

    def begin(self) -> None:
        """`claim`, with a disk that refuses told instead of raised."""
        self._trying(self.claim)

    def write(self, data: bytes) -> None:
        """Replace the file; the first failure is told, after it nothing is tried."""

        def replace() -> None:
            self.claim()
            write_private(self.path, data)

        self._trying(replace)

    def _trying(self, step: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            step()
        except EnvironmentFault as error:
            self._failed = True
            self._tell(f"this conversation is not kept: {error}")

    def another(self) -> SessionFile:
        """For the next conversation in the same folder; a failed disk stays told."""
        fresh = SessionFile(self.folder, tell=self._tell)
        fresh._failed = self._failed
        return fresh

    def close(self) -> None:
        """Let others have the name."""
        if self._lock is None:
            return
        place = self.folder / f".{self.name}.open"
        with suppress(OSError):
            (place / ".lock").unlink()
            place.rmdir()
        self._lock.__exit__(None, None, None)
        self._lock = None
