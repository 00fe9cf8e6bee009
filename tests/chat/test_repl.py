"""The real program on a real terminal: transcripts, key by key."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chatbench.chat import display, repl
from chatbench.chat.display import Screen, Shown, Span
from chatbench.chat.session import Forgotten, View
from chatbench.engine.engine import Completion, Piece
from chatbench.errors import UsageError
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

    def start(*arguments: str, prompt: str = PROMPT, **more: str) -> pexpect.spawn:
        child = pexpect.spawn(
            "sh", encoding="utf-8", timeout=120, dimensions=(24, 100), echo=False,
            env={**os.environ, "TERM": "xterm", "PS1": "", "PROMPT_TOOLKIT_NO_CPR": "1", **more},
        )  # fmt: skip
        children.append(child)
        child.sendline("stty -a | cksum; echo before")
        child.expect(r"(\d+ \d+)\s+before")
        child.modes = child.match[1]
        program = f"{sys.executable} -m chatbench chat -m {talker} --no-history"
        child.sendline(f"{program} {' '.join(arguments)}; echo left with $?")
        child.expect("/help shows the commands")
        child.expect(prompt)
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
    child = talk("--max-tokens", "5", "--temp", "0")
    assert re.search(FIGURES, answer_to(child, "When do you open?"))

    assert "answer the last message anew" in answer_to(child, "/help")
    assert "max_tokens 3" in answer_to(child, "/set max_tokens 3")
    assert "error: there is no setting colour" in answer_to(child, "/set colour red")
    retried = re.search(FIGURES, answer_to(child, "/retry"))
    assert retried is not None
    assert int(retried[1]) <= 3
    assert "there is no command /hlep; did you mean /help?" in answer_to(child, "/hlep")
    assert re.search(FIGURES, answer_to(child, "//usr is a path"))
    why = answer_to(child, "/why")
    assert re.search(r"\d tokens by probability", why)
    assert "least certain:" in why
    assert "quiet on" in answer_to(child, "/set quiet on")
    assert not re.search(FIGURES, answer_to(child, "/retry"))
    assert "quiet off" in answer_to(child, "/set quiet off")

    path = tmp_path / "chat.jsonl"
    assert "saved" in answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[::2]] == ["When do you open?", "/usr is a path"]

    type_line(child, "/exit")
    leaves_with(child, 0)


def test_ctrl_c_stops_a_reply_and_keeps_the_conversation(talk: Talk, tmp_path: Path) -> None:
    child = talk("--max-tokens", "4000")
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
    child = talk("--max-tokens", "5", "--temp", "0")
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


def test_a_block_a_draft_and_a_comparison(talk: Talk, talker: Path, tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(
        "import sys\nopen(sys.argv[1], 'a', encoding='utf-8').write('茶叶\\n价格\\n')",
        encoding="utf-8",
    )
    child = talk("--max-tokens", "5", VISUAL=f"{sys.executable} {script}", NO_COLOR="1")
    child.send('"""/exit\r第二行\r')
    child.expect("第二行")
    assert re.search(FIGURES, answer_to(child, '"""'))
    assert re.search(FIGURES, answer_to(child, "/edit"))
    child.send("no\x03")  # Ctrl-C takes back what is typed, and warns of nothing
    shown = answer_to(child, "/compare " + str(talker))
    assert " │ " in shown
    child.send("\x1b[200~贴\rin\x1b[201~")
    assert re.search(FIGURES, answer_to(child, ""))
    assert re.search(r"\[\d+(\.\d)?%\]", answer_to(child, "/why"))  # no colour: figures
    path = tmp_path / "chat.jsonl"
    answer_to(child, f"/save {path}")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    said = [m["content"] for m in messages[::2]]
    assert said == ["/exit\n第二行", "茶叶\n价格", "贴\nin"]
    child.sendeof()
    leaves_with(child, 0)


def test_a_dumb_terminal_gets_text_alone(talk: Talk) -> None:
    child = talk("--max-tokens", "5", prompt=">>> ", TERM="dumb")
    type_line(child, "你好")
    child.expect(FIGURES)
    assert "\x1b" not in child.before
    child.expect(">>> ")
    type_line(child, "/exit")
    leaves_with(child, 0)


def interrupt_at_random(child: pexpect.spawn, times: int, rng: random.Random) -> None:
    """Stop so many replies, each at another moment, with one Ctrl-C or several."""
    for number in range(times):
        type_line(child, rng.choice(["talk", "说吧", "/retry"]) if number else "talk")
        child.expect(TAKEN)
        time.sleep(rng.uniform(0, 0.08))
        child.sendintr()
        again = child.expect([r"\[stopped\]", pexpect.TIMEOUT], timeout=3)
        if again:  # the first came as a key, before the terminal was ours; the prompt will get it
            child.sendintr()
            child.expect(r"\[stopped\]")
        elif rng.random() < 0.2:
            child.sendintr()  # too late for the reply; may be the first of two at the prompt
        child.expect(PROMPT)
        type_line(child, "/set quiet=off")  # its answer, however many prompts there were before
        child.expect("quiet off")
        child.expect(PROMPT)


def terminal_is_sane_after(child: pexpect.spawn, times: int, rng: random.Random) -> None:
    interrupt_at_random(child, times, rng)
    shown = answer_to(child, "/show messages")
    assert "[stopped]" in shown
    answer_to(child, "/set max_tokens 3")
    assert re.search(FIGURES, answer_to(child, "still there? 还在吗？"))
    type_line(child, "/exit")
    leaves_with(child, 0)


def test_interrupts_at_random_leave_the_terminal_sane(talk: Talk, rng: random.Random) -> None:
    terminal_is_sane_after(talk("--max-tokens", "4000"), 15, rng)


@pytest.mark.slow
def test_two_hundred_interrupts_leave_the_terminal_sane(talk: Talk, rng: random.Random) -> None:
    terminal_is_sane_after(talk("--max-tokens", "4000"), 200, rng)


def test_ctrl_c_is_a_flag_and_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with repl.Interrupts() as interrupts:
        assert not interrupts.asked()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked()
        interrupts.forget()
        assert not interrupts.asked()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_program_that_is_ended_sets_the_terminal_back(talk: Talk) -> None:
    child = talk("--max-tokens", "4000")
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    if not children.exists():
        pytest.skip("without /proc nobody says which process it is")
    child.send("half a 句")
    child.expect("句")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    leaves_with(child, 143)


class Scripted:
    """As much of a session as showing its replies takes."""

    def __init__(self, **view: bool) -> None:
        self.view = View(**view)
        self.used, self.context = 9, 64
        self.tags: dict[str, str] = {}


def finished(reason: str = "stop") -> Completion:
    return Completion(0, [1, 2], "", reason, 3, 0, None, 0.25, 0.5)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repl, "screen", lambda: Screen(80, True, True))


@pytest.mark.usefixtures("terminal")
def test_a_reply_is_drawn_and_figures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    events = [Forgotten(2), Piece(0, "**茶"), Piece(0, "** \x1b[2J"), finished("cancelled")]
    repl._talk(Scripted(), iter(events))
    out, err = capsys.readouterr()
    assert out == "\x1b[1m茶\x1b[0m ␛[2J [stopped]\n"
    assert "the oldest 2 exchanges no longer fit and are left out" in err
    assert "2 tokens · 4 tok/s · first 250 ms · context 9/64" in err


@pytest.mark.usefixtures("terminal")
def test_what_is_shown_follows_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    repl._talk(Scripted(markdown=False, quiet=True), iter([Piece(0, "**茶**"), finished()]))
    assert capsys.readouterr() == ("**茶**\n", "")
    repl._talk(Scripted(), iter([Shown([[Span("甲")], [Span("two")]], ["a", "b"])]))
    assert " │ \x1b[1mb" in capsys.readouterr().out


@pytest.mark.usefixtures("terminal")
def test_a_reply_that_fails_leaves_no_colour_behind(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> Iterator[Piece]:
        yield Piece(0, "# 标题")
        raise UsageError("no more")

    with pytest.raises(UsageError):
        repl._talk(Scripted(), breaks())
    assert capsys.readouterr().out == "\x1b[1m\x1b[4m标题\x1b[0m\n"


@pytest.mark.parametrize(
    ("environment", "colour", "markdown"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_the_terminal_decides_what_is_drawn(
    environment: dict[str, str], colour: bool, markdown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(display.console, "stdout_is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert display.screen()[1:] == (colour, markdown)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert display.screen().markdown is False
    monkeypatch.setattr(display.console, "stdout_is_terminal", lambda: False)
    assert display.screen()[1:] == (False, False)
