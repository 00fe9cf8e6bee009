"""A conversation as a tree: what was said otherwise is kept beside what was said."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chatbench.conversation import Message
from chatbench.errors import UsageError, did_you_mean

MAIN = "main"
_LONGEST_NAME = 60


class Turn(msgspec.Struct, frozen=True):
    """One message; `parent` is the id of the one before it, 0 at the beginning. `stopped`: a reply
    that was interrupted. `good`: what the person thinks of it."""

    id: int
    parent: int
    message: Message
    stopped: bool = False
    good: bool | None = None


class Conversation:
    """Turns by id, named branches with their tips, and the one that is current.

    A parent's id is always smaller than its child's, so a path ends.
    """

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.turns: dict[int, Turn] = {}
        self.branches: dict[str, int] = {MAIN: 0}
        self.current = MAIN
        self._undone: list[int] = []
        for message in messages:
            self.add(message)

    @property
    def tip(self) -> int:
        """The id of the last turn; 0 when nothing was said."""
        return self.branches[self.current]

    def path(self, tip: int | None = None) -> list[Turn]:
        """The turns up to `tip`, oldest first."""
        at = self.tip if tip is None else tip
        turns = []
        while at:
            turns.append(self.turns[at])
            at = self.turns[at].parent
        return turns[::-1]

    def messages(self, tip: int | None = None) -> list[Message]:
        return [turn.message for turn in self.path(tip)]

    def add(self, message: Message, *, stopped: bool = False) -> Turn:
        """Say something after the tip, which moves there."""
        turn = Turn(max(self.turns, default=0) + 1, self.tip, message, stopped)
        self.turns[turn.id] = turn
        self.move(turn.id)
        return turn

    def move(self, tip: int) -> None:
        """Put the current branch's tip on another turn; what was undone stays undone."""
        self.branches[self.current] = tip
        self._undone.clear()

    def undo(self, count: int = 1) -> int:
        """Go back before the person's last `count` messages, as far as there are; how many.

        Raises UsageError when there is none.
        """
        asked = [turn for turn in self.path() if turn.message.role == "user"][-count:]
        if not asked:
            raise UsageError("there is nothing to undo", hint="say something first")
        self._undone.append(self.tip)
        self.branches[self.current] = asked[0].parent
        return len(asked)

    def redo(self) -> None:
        """Take the last undo back. Raises UsageError when nothing was undone since."""
        if not self._undone:
            raise UsageError("there is nothing to redo", hint="/undo goes back, /redo returns")
        self.branches[self.current] = self._undone.pop()

    def numbered(self, number: int) -> Turn:
        """The message with this number on the current path, from 1. Raises UsageError."""
        path = self.path()
        if not 1 <= number <= len(path):
            held = f"1 to {len(path)}" if path else "nothing was said yet"
            raise UsageError(f"there is no message {number}", hint=f"{held}; see /show messages")
        return path[number - 1]

    def last_reply(self) -> Turn:
        """The newest reply on the path. Raises UsageError when there is none."""
        for turn in reversed(self.path()):
            if turn.message.role == "assistant":
                return turn
        raise UsageError("there is no reply yet", hint="say something first")

    def alternatives(self, turn: Turn) -> list[Turn]:
        """All replies to the same message, in the order in which they came."""
        return [
            other for other in self.turns.values()
            if other.parent == turn.parent and other.message.role == turn.message.role
        ]  # fmt: skip

    def judge(self, turn: Turn, good: bool | None) -> None:
        self.turns[turn.id] = msgspec.structs.replace(turn, good=good)

    def branch(self, name: str = "") -> str:
        """Go on under another name from here; the old branch stays at this point. The name.

        Raises UsageError for a name that is taken or none.
        """
        if not name:
            number = len(self.branches) + 1
            while f"branch-{number}" in self.branches:
                number += 1
            name = f"branch-{number}"
        if name in self.branches:
            raise UsageError(f"there is a branch {name} already", hint=f"/switch {name} goes there")
        if (name.startswith("#") or name.isdecimal() or len(name) > _LONGEST_NAME
                or not name.isprintable() or len(name.split()) != 1):  # fmt: skip
            raise UsageError(f"{name} is no name for a branch", hint="one word, such as plan-b")
        self.branches[name] = self.tip
        self.current = name
        self._undone.clear()
        return name

    def loose_ends(self) -> list[int]:
        """Last turns of paths that no branch holds: retried, edited and undone ones."""
        held = {turn.id for tip in self.branches.values() for turn in self.path(tip)}
        parents = {turn.parent for turn in self.turns.values()}
        return [number for number in self.turns if number not in parents and number not in held]

    def switch(self, name: str) -> None:
        """Make another branch current; `#4` moves this one to the path that ends in turn 4.

        Raises UsageError for what is neither.
        """
        if name in self.branches:
            self.current = name
            self._undone.clear()
            return
        ends = {f"#{number}": number for number in self.loose_ends()}
        number = ends.get(name) or ends.get(f"#{name}")
        if number is None:
            known = [*self.branches, *ends]
            raise UsageError(f"there is no branch {name}", hint=did_you_mean(name, known))
        self.move(number)
