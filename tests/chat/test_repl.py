"""The real program on a real terminal: transcripts, key by key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatbench.settings import PretrainSettings
from chatbench.train.recipes import pretrain

pexpect = pytest.importorskip("pexpect")

# The editor switches bracketed paste on, draws the prompt and shows the cursor; off at the end.
PROMPT = r"\x1b\[\?2004h.*?>>>.*?\x1b\[\?25h"
TAKEN = r"\x1b\[\?2004l"
Make = Callable[..., PretrainSettings]
Talk = Callable[..., "pexpect.spawn"]


@pytest.fixture(scope="module")
def talker(
    corpus_folder: Path, tiny_settings: Make, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An untaught model with room for replies that take a while."""
    settings = tiny_settings(corpus_folder, tmp_path_factory.mktemp("talker") / "run", steps=1)
    settings.train.seq_len = 4096
    settings.train.batch_tokens = 4096
    settings.train.eval_tokens = 8
    settings.train.prompts = ["x"]
    settings.model.hidden_size = 64
    settings.model.n_layers = 4
    return pretrain(settings)


@pytest.fixture
def talk(talker: Path) -> Iterator[Talk]:
    """Starts the program in a shell on a terminal of its own, and waits for the prompt."""
    children = []

    def start(*arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            "sh", encoding="utf-8", timeout=30, dimensions=(24, 100), echo=False,
            env={**os.environ, "TERM": "xterm", "PS1": "", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )  # fmt: skip
        children.append(child)
        child.sendline("stty -a | cksum; echo before")
        child.expect(r"(\d+ \d+)\s+before")
        child.modes = child.match[1]
        program = f"{sys.executable} -m chatbench chat -m {talker} --no-history"
        child.sendline(f"{program} {' '.join(arguments)}; echo left with $?")
        child.expect("/help shows the commands")
        child.expect(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def type_line(child: pexpect.spawn, text: str) -> None:
    child.send(text + "\r")


def answer_to(child: pexpect.spawn, text: str) -> str:
    """What is shown between the line just typed and the next prompt, without colours."""
    type_line(child, text)
    child.expect(TAKEN)
    child.expect(PROMPT)
    return plain(child.before)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def leaves_with(child: pexpect.spawn, code: int) -> None:
    """The program ends with this code and the terminal is as it was."""
    child.expect(r"left with (\d+)")
    assert int(child.match[1]) == code
    child.sendline("stty -a | cksum; echo after")
    child.expect(r"(\d+ \d+)\s+after")
    assert child.match[1] == child.modes


FIGURES = r"(\d+) tokens · \d+ tok/s · first \d+ ms · context \d+/4096"


@pytest.mark.parametrize(
    ("question", "name"), [("When do you open?", "chat.jsonl"), ("你们几点开门？", "聊天.jsonl")]
)
def test_a_conversation_from_hello_to_goodbye(
    talk: Talk, tmp_path: Path, question: str, name: str
) -> None:
    child = talk("-n", "5", "--temp", "0")
    assert re.search(FIGURES, answer_to(child, question))

    assert "answer the last message anew" in answer_to(child, "/help")
    assert "max_tokens 3" in answer_to(child, "/set max_tokens 3")
    assert "error: there is no setting colour" in answer_to(child, "/set colour red")
    retried = re.search(FIGURES, answer_to(child, "/retry"))
    assert retried is not None
    assert int(retried[1]) <= 3
    assert "there is no command /hlep; did you mean /help?" in answer_to(child, "/hlep")
    assert re.search(FIGURES, answer_to(child, "//usr is a path"))

    path = tmp_path / name
    assert "saved" in answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[::2]] == [question, "/usr is a path"]

    type_line(child, "/exit")
    leaves_with(child, 0)


def test_ctrl_c_stops_a_reply_and_keeps_the_conversation(talk: Talk, tmp_path: Path) -> None:
    child = talk("-n", "4000")
    for line in ("talk", "/retry"):
        type_line(child, line)
        child.expect(TAKEN)
        child.expect(r"\w{2}")  # the reply has begun
        child.sendintr()
        child.expect(r"\[stopped\]")
        child.expect(FIGURES)
        child.expect(PROMPT)
    path = tmp_path / "chat.jsonl"
    assert "saved" in answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[1]["content"]

    child.sendintr()
    child.expect("Ctrl-C again leaves")
    child.expect(PROMPT)
    answer_to(child, "/show")
    child.sendintr()
    child.expect("Ctrl-C again leaves")
    child.expect(PROMPT)
    child.sendintr()
    leaves_with(child, 130)


def test_ctrl_d_leaves_and_several_lines_can_be_typed(talk: Talk, tmp_path: Path) -> None:
    child = talk("-n", "2")
    child.send("one\x1b\rtwo")  # Alt-Enter between
    child.expect("two")
    assert re.search(FIGURES, answer_to(child, ""))
    path = tmp_path / "chat.jsonl"
    answer_to(child, f"/save {path}")
    asked = json.loads(path.read_text(encoding="utf-8"))["messages"][0]["content"]
    assert asked == "one\ntwo"
    child.sendeof()
    leaves_with(child, 0)


def test_what_is_typed_is_kept_for_its_owner_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from chatbench.chat import repl

    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    history = repl._history(keep=True)
    history.store_string("hello 你好")
    path = repl.history_path()
    assert path == tmp_path / "home" / "history"
    assert "hello 你好" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_history_that_cannot_be_written_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chatbench.chat import repl

    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "home"))
    repl._history(keep=True).store_string("hello")
    assert "what you type is not kept" in capsys.readouterr().err


def test_without_a_terminal_a_conversation_is_refused(talker: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chatbench", "chat", "-m", talker],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no text to answer; give -p TEXT or pipe text in\n"
