"""Which kept conversation a chat begins with."""

from __future__ import annotations

from chatbench import console
from chatbench.chat.session import ChatSession
from chatbench.chat.sessions import check_name, names, sessions_folder
from chatbench.errors import UsageError
from chatbench.settings import ChatSettings


def begin(session: ChatSession, settings: ChatSettings) -> None:
    """Take up the conversation that the settings name, and keep what follows.

    A system prompt of the settings comes before that of the conversation. Raises UsageError for a
    name that cannot be one, and for a file that holds no conversation.
    """
    wanted = check_name(settings.session) if settings.session is not None else ""
    folder = sessions_folder()
    if folder is None:
        if wanted or settings.continue_:
            raise UsageError("there is no HOME to keep conversations in", hint="set CHATBENCH_HOME")
        if settings.save:
            console.notice("there is no HOME, so this conversation is not kept")
        return
    if settings.continue_:
        wanted = next(iter(names(folder)), "")
        if not wanted:
            console.notice("no conversation was kept yet, so a new one begins")
    if settings.save:
        there = session.keep_in(folder, wanted)
    else:
        there = bool(wanted) and wanted in names(folder)
        if there:
            session.load(folder / f"{wanted}.jsonl")
    if there:
        if settings.system is not None:
            session.system = settings.system
        console.say(f"session {wanted}, {len(session.messages)} messages", style="dim")
