"""Replies without a terminal: in order, one for each line, and nothing in them is obeyed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.chat import start
from chatbench.chat.pipe import JsonLines, continue_text, reply_once
from chatbench.chat.session import ChatSession
from chatbench.engine import engine
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import ChatSettings, SamplingSettings

GREEDY = SamplingSettings(temperature=0.0, max_tokens=4)
Ask = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture
def ask(opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The exit code and the reply rows for the given lines."""

    def answered(
        *lines: object, system: str | None = None, raw: bool = False, batch_size: int = 3
    ) -> tuple[int, list[dict[str, Any]]]:
        data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / "in").write_bytes(b"\n".join(data))
        capsys.readouterr()
        stdin = os.open(tmp_path / "in", os.O_RDONLY)
        pipe = JsonLines(opened, GREEDY, system, raw=raw, batch_size=batch_size)
        try:
            code = pipe.run(stdin)
        finally:
            os.close(stdin)
        shown = capsys.readouterr()
        assert shown.err == ""
        return code, [json.loads(line) for line in shown.out.splitlines()]

    return answered


def say_always(monkeypatch: pytest.MonkeyPatch, opened: OpenedModel, text: str) -> None:
    """From now on the model writes this."""
    ids = [*opened.tokenizer.encode(text), opened.tokenizer.turn_end]
    left: list[int] = []

    def choose(*_: object) -> int:
        nonlocal left
        left = left or list(ids)
        return left.pop(0)

    monkeypatch.setattr(engine, "choose", choose)


# -- one reply -----------------------------------------------------------------------------------


def test_one_prompt_gets_one_reply_on_stdout(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_always(monkeypatch, opened, "你好 there")
    assert reply_once(ChatSession(opened, SamplingSettings()), "x") == 0
    assert capsys.readouterr().out == "你好 there\n"


HOSTILE = "\x1b[2J\x1b]52;\x07\x9b\u202ea\u2066\r[b]x[/b]"


@pytest.mark.parametrize("raw", [False, True])
def test_what_a_terminal_would_obey_is_shown_instead(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    raw: bool,
) -> None:  # fmt: skip
    """Bytes of one character come in several tokens, so this is split everywhere too."""
    say_always(monkeypatch, opened, HOSTILE)
    sampling = SamplingSettings(max_tokens=200)
    if raw:
        continue_text(opened, sampling, "x")
    else:
        reply_once(ChatSession(opened, sampling), "x")
    shown = capsys.readouterr().out
    assert shown == "␛[2J␛]52;␇\\x9b\\u202ea\\u2066␍[b]x[/b]\n"


def test_json_escapes_control_characters_and_keeps_them(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    say_always(monkeypatch, opened, "\x1b[2J")
    code, (row,) = ask({"prompt": "x", "max_tokens": 30})
    assert (code, row["text"]) == (0, "\x1b[2J")


def settings_for(base_run: Path, **given: Any) -> ChatSettings:
    return ChatSettings(model=str(base_run), device="cpu", sampling=GREEDY, **given)


@pytest.mark.parametrize(
    ("given", "piped", "asked"),
    [("hello", b"", "hello"), (None, "你好\n".encode(), "你好\n"), ("-", b"x", "x"),
     ("Sum up:", b"of the loop", "Sum up:"), ("hello", b"  \n", "hello"),
     (None, b"\xffbad", "\ufffdbad"), ("\udcff?", b"", "??")],
)  # fmt: skip
def test_what_is_asked_is_the_prompt_or_else_what_is_piped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base_run: Path, given: str | None,
    piped: bytes, asked: str,
) -> None:  # fmt: skip
    seen = []
    (tmp_path / "in").write_bytes(piped)
    monkeypatch.setattr(start, "reply_once", lambda session, prompt: seen.append(prompt) or 0)
    with open(tmp_path / "in", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert start.chat(settings_for(base_run, prompt=given)) == 0
    assert seen == [asked]


@pytest.mark.parametrize(("jsonl", "why"), [(True, "stdin is closed"), (False, "no text")])
def test_a_closed_stdin_is_a_mistake_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, base_run: Path, jsonl: bool, why: str
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=why):
        start.chat(settings_for(base_run, jsonl=jsonl))


@pytest.mark.parametrize(
    ("given", "why"),
    [({"jsonl": True, "prompt": "Hi"}, "leave -p out"),
     ({"raw": True, "prompt": "Hi", "system": "友善"}, "no --system prompt")],
)  # fmt: skip
def test_flags_without_effect_are_refused(base_run: Path, given: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        start.chat(settings_for(base_run, **given))


def test_neither_prompt_nor_piped_text_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, base_run: Path
) -> None:
    with open(os.devnull, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="give -p TEXT or pipe text in"):
            start.chat(settings_for(base_run))


# -- JSON Lines ----------------------------------------------------------------------------------


def test_replies_come_in_order_with_the_ids_they_were_asked_with(
    ask: Ask, rng: random.Random
) -> None:
    count = rng.randint(1, 12)
    names = [rng.choice([n, f"q{n}", [n], {"n": n}, None]) for n in range(count)]
    # Different lengths, so that they end in another order than they began.
    rows = [{"id": n, "prompt": "x" * rng.randint(1, 9), "max_tokens": rng.randint(1, 8)}
            for n in names]  # fmt: skip
    code, replies = ask(*rows)
    assert code == 0
    assert [reply["id"] for reply in replies] == names
    for row, reply in zip(rows, replies, strict=True):
        assert set(reply) == {"id", "text", "finish_reason", "usage"}
        assert reply["usage"]["completion_tokens"] <= row["max_tokens"]


def test_without_an_id_the_line_number_is_one_and_blank_lines_count(ask: Ask) -> None:
    code, replies = ask({"prompt": "a"}, b"", b"   ", {"prompt": "b"}, b"")
    assert (code, [reply["id"] for reply in replies]) == (0, [1, 4])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_answers_do_not_depend_on_the_batch(ask: Ask, batch_size: int) -> None:
    prompts = ["tea", "a longer question 茶", "x", "ink and paper", "雨"]
    alone = [ask({"prompt": prompt})[1][0]["text"] for prompt in prompts]
    _, together = ask(*({"prompt": prompt} for prompt in prompts), batch_size=batch_size)
    assert [reply["text"] for reply in together] == alone


def test_each_line_has_its_own_sampling(ask: Ask) -> None:
    _, replies = ask(
        {"prompt": "tea", "max_tokens": 1},
        {"prompt": "tea"},
        {
            "prompt": "tea",
            "temperature": 2.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_tokens": 12,
            "seed": 1,
        },
        {
            "prompt": "tea",
            "temperature": 2.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_tokens": 12,
            "seed": 2,
        },
        {
            "prompt": "tea",
            "temperature": 2.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_tokens": 12,
            "seed": 1,
        },
    )
    texts = [reply["text"] for reply in replies]
    assert replies[0]["usage"]["completion_tokens"] == 1
    assert texts[2] == texts[4]
    assert texts[2] != texts[3]
    assert texts[1] == ask({"prompt": "tea"})[1][0]["text"], "and it is gone with its line"


def test_messages_and_system_prompts_reach_the_model(ask: Ask) -> None:
    _, replies = ask(
        {"prompt": "tea"},
        {"messages": [{"role": "user", "content": "tea"}]},
        {"prompt": "tea", "system": "Be"},
        {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "tea"}]},
        {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "tea"}],
         "system": "Other"},
    )  # fmt: skip
    lengths = [reply["usage"]["prompt_tokens"] for reply in replies]
    assert lengths[0] == lengths[1]
    assert lengths[2] == lengths[3] == lengths[4] > lengths[0]
    _, (common,) = ask({"prompt": "tea"}, system="Be")
    assert common["usage"]["prompt_tokens"] == lengths[2]


def test_raw_prompts_are_continued_without_turns(ask: Ask, opened: OpenedModel) -> None:
    _, (reply,) = ask({"prompt": "tea"}, raw=True)
    assert reply["usage"]["prompt_tokens"] == 1 + len(opened.tokenizer.encode("tea"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello", "malformed"),
        (b'{"prompt": "x"', "truncated"),
        (b"[1, 2]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "neither prompt nor messages"),
        (b'{"prompt": 5}', "neither prompt nor messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        (b'{"messages": [{"role": "user"}]}', "no text"),
        (b'{"prompt": "x", "temprature": 1}', "no temprature; did you mean temperature?"),
        (b'{"prompt": "x", "temperature": -1}', "temperature"),
        (b'{"prompt": "x", "max_tokens": "many"}', "max_tokens"),
        (b'{"prompt": "\xff"}', "line 2"),
        (b'{"prompt": "\\ud800"}', "line 2"),
        (b"[" * 100_000, "line 2"),
        (b'{"a":' * 100_000, "line 2"),
        (json.dumps({"prompt": "long " * 100}).encode(), "context"),
    ],
)
def test_a_bad_line_says_why_and_stops_nothing(ask: Ask, line: bytes, why: str) -> None:
    code, replies = ask({"prompt": "a"}, line, {"prompt": "b"})
    assert code == 3
    assert [reply["id"] for reply in replies] == [1, 2, 3]
    assert set(replies[1]) == {"id", "error"}
    assert replies[1]["error"].startswith("line 2: ")
    assert why in replies[1]["error"]
    assert "text" in replies[0]
    assert "text" in replies[2]


def test_a_bad_line_keeps_its_id(ask: Ask) -> None:
    _, (reply,) = ask({"id": "q7", "prompt": "x", "colour": 1})
    assert reply["id"] == "q7"


def test_no_lines_give_no_replies(ask: Ask) -> None:
    assert ask(b"") == (0, [])


# -- the real program ----------------------------------------------------------------------------


def test_a_waiting_writer_is_answered_line_by_line(base_run: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "chatbench", "chat", "-m", base_run, "--jsonl", "-n", "3"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(json.dumps({"id": number, "prompt": f"问{number}"}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(60) == 0


def test_a_reader_that_leaves_ends_the_program_quietly(base_run: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(200)))
    command = (
        f"{sys.executable} -m chatbench chat -m {base_run} --jsonl -n 2 -b 2 < {questions}"
        " | head -1; echo ${PIPESTATUS[0]} >&2"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == "141\n"
