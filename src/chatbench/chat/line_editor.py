"""The line a person types: history, search, several lines, paste, an editor, Tab."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from chatbench import console
from chatbench.errors import UsageError, UserError

PROMPT = ">>> "
BLOCK = '"""'
# For a line up to the cursor: what its end, a word or a path with spaces, may become.
Completions = Callable[[str], Iterable[str]]


class LineEditor:
    """Reads what a person types on a terminal."""

    def __init__(self, completions: Completions, *, keep_history: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history(keep_history),
            completer=_Tab(completions),
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="... ",
            enable_history_search=True,
        )

    def read(self, ready: Callable[[], None] = lambda: None) -> str:
        """What was entered. `ready` is called when keys begin to go to the editor.

        Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C at an empty prompt.
        """
        return self._session.prompt(PROMPT, pre_run=ready)


def entered(line: str) -> tuple[str, bool]:
    """What a line says, and whether it is a command: a block in triple quotes is taken as it
    is, and // stands for a slash that begins a message."""
    text = line.strip()
    if is_block(text) and not is_open_block(text):
        return text[len(BLOCK) : -len(BLOCK)].strip(), False
    if text.startswith("//"):
        return text[1:], False
    return text, text.startswith("/")


def is_block(text: str) -> bool:
    """Whether what is typed begins a block of several lines."""
    return text.lstrip().startswith(BLOCK)


def is_open_block(text: str) -> bool:
    """Whether a block was begun and not ended, so that Enter begins a new line."""
    stripped = text.strip()
    return is_block(text) and not (len(stripped) >= 2 * len(BLOCK) and stripped.endswith(BLOCK))


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # while history is searched, Enter and Ctrl-C end that
    some_text = Condition(lambda: bool(get_app().current_buffer.text))

    @keys.add("enter", filter=typing)
    def submit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=typing & some_text)
    def forget(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @keys.add("c-g", filter=typing)
    @keys.add("c-x", "c-e", filter=typing)
    def edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer

        async def elsewhere() -> None:
            await run_in_terminal(lambda: _edit_buffer(buffer))

        event.app.create_background_task(elsewhere())

    return keys


def _edit_buffer(buffer: Buffer) -> None:
    try:
        text = edit_text(buffer.text)
    except UserError as error:
        console.fail(str(error))
    else:
        buffer.document = Document(text, len(text))


def edit_text(text: str) -> str:
    """The text as the person's own editor ($VISUAL, $EDITOR, else vi) left it, without the line
    ends at its end. Raises UsageError when the editor cannot be started or fails."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    hint = "set EDITOR to an editor you have"
    with tempfile.TemporaryDirectory(prefix="chatbench-") as folder:
        path = Path(folder, "message.md")  # mkdtemp: for its owner alone
        path.write_bytes(text.encode("utf-8", errors="replace"))
        try:
            code = subprocess.run([*shlex.split(command), str(path)], check=False).returncode
            changed = path.read_bytes() if code == 0 else b""
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"the editor {command} did not work: {why}", hint=hint) from error
    if code != 0:
        raise UsageError(f"the editor {command} ended with {code}; the text is as it was",
                         hint=hint)  # fmt: skip
    return changed.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").rstrip("\n")


class _Tab(Completer):
    """Tab: what the conversation knows to follow."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        if "\n" in line or not line.startswith("/"):
            return
        for text in self._completions(line):
            begun = next(at for at in range(len(line) + 1) if text.startswith(line[at:]))
            yield Completion(text, begun - len(line), display=console.visible(text))


def history_path() -> Path:
    """Where typed lines are kept: CHATBENCH_HOME, else XDG's state folder."""
    home = os.environ.get("CHATBENCH_HOME")
    if home:
        return Path(home, "history")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "chatbench", "history")


def history(keep: bool) -> History:
    """Lines typed before, in a file for its owner alone; without `keep` in memory only."""
    if not keep:
        return InMemoryHistory()
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.open("ab").close()
    except OSError:
        console.notice(f"{path} cannot be written, so what you type is not kept")
        return InMemoryHistory()
    return _KeptHistory(str(path))


class _KeptHistory(FileHistory):
    """A disk that fills up does not end a conversation."""

    _told = False

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            if not self._told:
                self._told = True
                console.notice(f"what you type is not kept any more: {error.strerror}")
