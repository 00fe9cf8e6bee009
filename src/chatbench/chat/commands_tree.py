"""Slash commands that move in the conversation."""

from __future__ import annotations

from chatbench.chat.session import ChatSession
from chatbench.chat.spoken import Draft, Reply, whole_number
from chatbench.errors import UsageError

EXCERPT = 48


def retry(session: ChatSession, argument: str) -> Reply:
    """answer the last message anew; /prefer N chooses between the replies"""
    return session.retry


def undo(session: ChatSession, argument: str) -> Reply:
    """[N]: take the last message and its reply back, or the last N"""
    count = session.undo(whole_number(argument, "/undo 2") if argument else 1)
    what = "the last exchange" if count == 1 else f"the last {count} exchanges"
    return f"took {what} back; /redo returns"


def redo(session: ChatSession, argument: str) -> Reply:
    """take the last undo back"""
    session.redo()
    return f"{len(session.messages)} messages again"


def edit(session: ChatSession, argument: str) -> Reply:
    """N [TEXT]: say message N otherwise and go on from there; without TEXT in your editor"""
    if not argument:
        return Draft("")
    first, *rest = argument.split(maxsplit=1)
    number = whole_number(first, "/edit 1 TEXT; /show messages has the numbers")
    turn = session.conversation.numbered(number)
    if not rest:
        return Draft(turn.message.content, number)
    text = rest[0]
    if turn.message.role == "user":
        return lambda cancelled: session.edit(number, text, cancelled)
    list(session.edit(number, text))
    return f"message {number} changed"


def branch(session: ChatSession, argument: str) -> Reply:
    """[NAME]: keep this point and go on from it under another name"""
    before = session.conversation.current
    return f"on {session.branch(argument)} now; /switch {before} goes back here"


def branches(session: ChatSession, argument: str) -> Reply:
    """list the branches, and replaced paths as #N"""
    tree = session.conversation
    named = [(name, tip) for name, tip in tree.branches.items()]
    loose = [(f"#{number}", number) for number in tree.loose_ends()]
    lines = []
    for name, tip in [*named, *loose]:
        messages = tree.messages(tip)
        mark = "*" if name == tree.current else " "
        last = excerpt(messages[-1].content) if messages else "(empty)"
        lines.append(f"{mark} {name}  {len(messages)} messages  {last}")
    return "\n".join(lines)


def switch(session: ChatSession, argument: str) -> Reply:
    """NAME: go on where that branch ends"""
    if not argument:
        raise UsageError("/switch needs a branch", hint="/branches lists them")
    session.switch(argument)
    return f"on {session.conversation.current}, {len(session.messages)} messages"


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}…"
