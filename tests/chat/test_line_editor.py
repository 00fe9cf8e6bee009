"""Key by key: what is typed, pasted, completed, searched and edited elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from chatbench.chat import line_editor
from chatbench.chat.line_editor import LineEditor, edit_text, entered, is_open_block
from chatbench.errors import UsageError

Type = Callable[..., str]


def words(line: str) -> list[str]:
    if line.startswith("/save "):
        return [word for word in ["茶 单.txt"] if word.startswith(line.removeprefix("/save "))]
    return [word for word in ["/help", "/save", "/说明"] if word.startswith(line)]


@pytest.fixture
def type_keys() -> Iterator[Type]:
    """Sends keys to an editor; the line that comes of it."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        editor = LineEditor(words, keep_history=False)

        def send(text: str) -> str:
            keys.send_text(text)
            return editor.read()

        yield send


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("hello\r", "hello"),
        ("小店九点开门吗？\x7f\x7f呢\r", "小店九点开门呢"),
        ("好\x1b[D你\r", "你好"),  # one step to the left is one wide character
        ("one\x1b\rtwo\x0a三\r", "one\ntwo\n三"),  # Alt-Enter, Ctrl-J
        ('"""one\r二\r"""\r', '"""one\n二\n"""'),
        ('"""one"""\r', '"""one"""'),
        ("\x1b[200~一\r\ntwo\rthree\n\x1b[201~\r", "一\ntwo\nthree\n"),  # a paste
        ("a\x1b[200~/exit\r\x1b[201~b\r", "a/exit\nb"),
        ("wrong\x03right\r", "right"),  # Ctrl-C takes the line back
    ],
)
def test_keys_make_a_line(type_keys: Type, keys: str, line: str) -> None:
    assert type_keys(keys) == line


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("/he", "/help"),
        ("/说", "/说明"),
        ("/save 茶 单", "/save 茶 单.txt"),
        ("/save ", "/save 茶 单.txt"),
    ],
)
def test_tab_completes_words_and_paths(typed: str, line: str) -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        editor = LineEditor(words, keep_history=False)

        def enter_when_completed(buffer: Buffer) -> None:
            if buffer.text == line:
                keys.send_text("\r")

        editor._session.default_buffer.on_text_changed += enter_when_completed
        late = threading.Timer(20, keys.send_text, ["\r"])  # a line that is not completed fails
        late.start()
        keys.send_text(f"{typed}\t")
        assert editor.read() == line
        late.cancel()


def test_tab_offers_only_commands_and_shows_them_safely() -> None:
    tab = line_editor._Tab(lambda line: ["/a\x1b[2J"])
    assert not list(tab.get_completions(Document("a/"), CompleteEvent()))
    assert not list(tab.get_completions(Document("/\n"), CompleteEvent()))
    (offered,) = tab.get_completions(Document("/"), CompleteEvent())
    assert offered.display_text == "/a␛[2J"


def test_ctrl_c_and_ctrl_d_at_an_empty_prompt_end_the_line(type_keys: Type) -> None:
    with pytest.raises(KeyboardInterrupt):
        type_keys("\x03")
    with pytest.raises(EOFError):
        type_keys("\x04")
    with pytest.raises(KeyboardInterrupt):
        type_keys("text\x03\x03")


def test_earlier_lines_come_back_and_can_be_searched(type_keys: Type) -> None:
    for line in ("first line", "第二行 tea", "third"):
        assert type_keys(f"{line}\r") == line
    assert type_keys("\x1b[A\x1b[A\r") == "第二行 tea"
    assert type_keys("first\x1b[A\r") == "first line"  # what begins like this
    assert type_keys("\x12二行\r\r") == "第二行 tea"  # Ctrl-R; Enter ends the search, then the line


def editor_script(folder: Path, code: str) -> str:
    path = folder / "an editor.py"
    path.write_text(f"import sys\npath = sys.argv[1]\n{code}\n", encoding="utf-8")
    return f"{sys.executable} '{path}'"


def test_ctrl_g_edits_the_line_in_the_persons_editor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change = "text = open(path).read()\nopen(path, 'w').write(text + ' 茶\\nmore\\n')"
    monkeypatch.setenv("EDITOR", "false")
    monkeypatch.setenv("VISUAL", editor_script(tmp_path, change))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        editor = LineEditor(words, keep_history=False)

        def then_enter(text: str) -> str:  # what is typed meanwhile goes to the editor
            changed = edit_text(text)
            keys.send_text("!\r")
            return changed

        monkeypatch.setattr(line_editor, "edit_text", then_enter)
        keys.send_text("一杯\x07")
        assert editor.read() == "一杯 茶\nmore!"


def test_an_editor_that_fails_leaves_the_line_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor_script(tmp_path, "sys.exit(3)"))
    with pytest.raises(UsageError, match="ended with 3"):
        edit_text("茶")
    for wrong in ("/no/such/editor", "'unclosed"):
        monkeypatch.setenv("EDITOR", wrong)
        with pytest.raises(UsageError, match=f"the editor {wrong} did not work"):
            edit_text("茶")
    monkeypatch.setenv("EDITOR", editor_script(tmp_path, "import os\nos.unlink(path)"))
    with pytest.raises(UsageError, match="did not work"):
        edit_text("茶")


def test_a_draft_is_for_its_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = f"import os\nopen({str(seen)!r}, 'w').write(oct(os.stat(os.path.dirname(path)).st_mode))"
    monkeypatch.setenv("VISUAL", editor_script(tmp_path, code))
    assert edit_text("茶\n\nx\n") == "茶\n\nx"
    assert seen.read_text().endswith("700")


@pytest.mark.parametrize(
    ("line", "text", "command"),
    [
        ("  hi ", "hi", False),
        ("/help x", "/help x", True),
        ("//usr", "/usr", False),
        ("///", "//", False),
        ('"""\n/exit\n茶\n"""', "/exit\n茶", False),
        ('""""""', "", False),
        ('"""', '"""', False),
        ("", "", False),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, text: str, command: bool) -> None:
    assert entered(line) == (text, command)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [('"""', True), ('"""a', True), ('"""a"""', False), ('""""""', False), ('""""', True),
     ('a """', False), ('  """a\n""" ', False), ("", False)],
)  # fmt: skip
def test_a_block_is_open_until_its_quotes_come(text: str, is_open: bool) -> None:
    assert is_open_block(text) is is_open


def test_what_is_typed_is_kept_for_its_owner_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    history = line_editor.history(keep=True)
    history.store_string("hello 你好\n二")
    path = line_editor.history_path()
    assert path == tmp_path / "home" / "history"
    assert list(line_editor.history(keep=True).load_history_strings()) == ["hello 你好\n二"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_without_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    line_editor.history(keep=False).append_string("hello")
    assert not (tmp_path / "home").exists()


def test_a_history_that_cannot_be_written_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    line_editor.history(keep=True).store_string("hello")
    assert "what you type is not kept" in capsys.readouterr().err


def test_a_history_that_goes_away_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    history = line_editor.history(keep=True)
    line_editor.history_path().unlink()
    line_editor.history_path().mkdir()
    history.store_string("one")
    history.store_string("二")
    assert capsys.readouterr().err.count("not kept any more") == 1
    assert list(history.load_history_strings()) == []
