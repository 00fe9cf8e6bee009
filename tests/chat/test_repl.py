"""The real program on a real terminal: transcripts, key by key."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chatbench.model.folder import stored_weights, write_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.text.tokenizer import Tokenizer

pexpect = pytest.importorskip("pexpect")

# The editor switches bracketed paste on, draws the prompt and shows the cursor; off at the end.
PROMPT = r"\x1b\[\?2004h.*?>>>.*?\x1b\[\?25h"
TAKEN = r"\x1b\[\?2004l"
Talk = Callable[..., "pexpect.spawn"]


@pytest.fixture(scope="module")
def talker(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untaught model with room for long replies, which never ends one by itself."""
    model = GPT(ModelConfig(tokenizer.vocab_size, 4, 64, 2, 2, 32, 64, 4096))
    initialise(model, 0)
    with torch.no_grad():  # logits of zero: never among the likeliest fifty
        model.model.embed_tokens.weight[list(tokenizer.control_ids)] = 0.0
    folder = tmp_path_factory.mktemp("talker") / "model"
    write_model(folder, model.config, stored_weights(model), tokenizer)
    return folder


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


def test_a_conversation_in_english_from_hello_to_goodbye(talk: Talk, tmp_path: Path) -> None:
    child = talk("-n", "5", "--temp", "0")
    assert re.search(FIGURES, answer_to(child, "When do you open?"))

    assert "answer the last message anew" in answer_to(child, "/help")
    assert "max_tokens 3" in answer_to(child, "/set max_tokens 3")
    assert "error: there is no setting colour" in answer_to(child, "/set colour red")
    retried = re.search(FIGURES, answer_to(child, "/retry"))
    assert retried is not None
    assert int(retried[1]) <= 3
    assert "there is no command /hlep; did you mean /help?" in answer_to(child, "/hlep")
    assert re.search(FIGURES, answer_to(child, "//usr is a path"))

    path = tmp_path / "chat.jsonl"
    assert "saved" in answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[::2]] == ["When do you open?", "/usr is a path"]

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


def test_a_conversation_in_chinese_over_several_lines_until_ctrl_d(
    talk: Talk, tmp_path: Path
) -> None:
    child = talk("-n", "5", "--temp", "0")
    child.send("你们几点开门？\x1b\r茶多少钱？")  # Alt-Enter between
    child.expect("茶多少钱？")
    assert re.search(FIGURES, answer_to(child, ""))
    assert "temperature 0.5" in answer_to(child, "/set temperature 0.5")
    assert "error: there is no command /保存" in answer_to(child, "/保存")
    assert re.search(FIGURES, answer_to(child, "/retry"))
    assert re.search(FIGURES, answer_to(child, "//杠"))
    path = tmp_path / "聊天 1.jsonl"
    assert f"saved {path}" in answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["content"] for m in messages[::2]] == ["你们几点开门？\n茶多少钱？", "/杠"]
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
