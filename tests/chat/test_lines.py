"""JSON Lines: in order, one reply for each line, as soon as it can be told, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.piping import GREEDY, asker

from chatbench.chat.asking import LONGEST_LINE, sample_seeds
from chatbench.chat.lines import JsonLines, LineReader
from chatbench.chat.prompting import control_text
from chatbench.corpus.cleaning.stages import tagged
from chatbench.corpus.document import Document
from chatbench.engine.engine import Piece
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings

Ask = Callable[..., tuple[int, list[dict[str, Any]]]]
WILD = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


def encoded(line: object) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()


@pytest.fixture
def ask(opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The exit code and the reply rows for the given lines."""

    def answered(
        *lines: object, batch_size: int = 3, sampling: SamplingSettings = GREEDY, **given: Any
    ) -> tuple[int, list[dict[str, Any]]]:
        (tmp_path / "in").write_bytes(b"\n".join(map(encoded, lines)))
        capsys.readouterr()
        stdin = os.open(tmp_path / "in", os.O_RDONLY)
        try:
            pipe = JsonLines(asker(opened, sampling, batch_size, **given), batch_size)
            code = pipe.run(stdin)
        finally:
            os.close(stdin)
        shown = capsys.readouterr()
        assert shown.err == ""
        return code, [json.loads(line) for line in shown.out.splitlines()]

    return answered


# -- what is asked -------------------------------------------------------------------------------


def test_replies_come_in_order_with_the_ids_they_were_asked_with(
    ask: Ask, rng: random.Random
) -> None:
    count = rng.randint(1, 12)
    names = [rng.choice([n, f"问{n}", [n], {"n": n}, n + 0.5]) for n in range(count)]
    # Different lengths, so that they end in another order than they began.
    rows = [{"id": n, "prompt": "x" * rng.randint(1, 9), "max_tokens": rng.randint(1, 8)}
            for n in names]  # fmt: skip
    code, replies = ask(*rows)
    assert code == 0
    assert [reply["id"] for reply in replies] == names
    for row, reply in zip(rows, replies, strict=True):
        assert set(reply) == {"id", "text", "finish_reason", "usage", "timings", "seed", "model"}
        assert reply["usage"]["completion_tokens"] <= row["max_tokens"]


def test_without_an_id_the_line_number_is_one_and_blank_lines_count(ask: Ask) -> None:
    code, replies = ask({"prompt": "a"}, b"", b"   ", {"prompt": "b", "id": None}, b"")
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
        {"prompt": "tea", "seed": 1, **WILD},
        {"prompt": "tea", "seed": 2, **WILD},
        {"prompt": "tea", "seed": 1, **WILD},
        {"prompt": "tea", "logprobs": 2},
    )
    texts = [reply["text"] for reply in replies]
    assert replies[0]["usage"]["completion_tokens"] == 1
    assert texts[2] == texts[4]
    assert texts[2] != texts[3]
    assert [reply["seed"] for reply in replies[2:5]] == [1, 2, 1]
    assert texts[1] == ask({"prompt": "tea"})[1][0]["text"], "and it is gone with its line"
    assert "logprobs" not in replies[4]
    assert all(len(token["top_logprobs"]) == 2 for token in replies[5]["logprobs"]["content"])


def test_a_bias_reaches_the_model(ask: Ask, opened: OpenedModel) -> None:
    (number,) = opened.tokenizer.encode("茶")[:1]
    row = {"prompt": "x", "logit_bias": {str(number): 100}, "max_tokens": 3, "logprobs": 0}
    _, (reply,) = ask(row)
    entry = list(opened.tokenizer.token_bytes[number])
    assert [token["bytes"] for token in reply["logprobs"]["content"]] == [entry] * 3


def test_several_samples_are_several_lines_with_one_id(ask: Ask) -> None:
    code, replies = ask(
        {"id": "a", "prompt": "tea", "n": 3, "seed": 5, **WILD}, {"prompt": "雨"}, samples=2
    )
    assert code == 0
    assert [(r["id"], r["index"], r["n"]) for r in replies] == [
        ("a", 0, 3), ("a", 1, 3), ("a", 2, 3), (2, 0, 2), (2, 1, 2)
    ]  # fmt: skip
    assert [r["seed"] for r in replies[:3]] == sample_seeds(5, 3)
    for reply in replies[:3]:
        _, (alone,) = ask({"prompt": "tea", "seed": reply["seed"], **WILD})
        assert alone["text"] == reply["text"]


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


def test_tags_are_the_control_text_of_training(ask: Ask, rng: random.Random) -> None:
    values = ["formal", " 正式\n的 ", 3, True, None, "", 0.5]
    tags = {f"列{n}": rng.choice(values) for n in range(rng.randint(1, 5))} | {"style": "brief"}
    document = Document("a:1", messages=(), meta=tags)
    assert control_text(tags) == tagged(document, list(tags), 0.0, b"").control
    _, replies = ask(
        {"prompt": "tea", "tags": {"style": "brief"}},
        {"prompt": "tea", "system": "style: brief"},
        {"prompt": "tea", "system": "Be", "tags": {"style": "brief"}},
        {"prompt": "tea", "system": "Be\n\nstyle: brief"},
    )
    lengths = [reply["usage"]["prompt_tokens"] for reply in replies]
    assert lengths[0] == lengths[1] < lengths[2] == lengths[3]
    assert replies[0]["text"] == replies[1]["text"]


def test_raw_prompts_are_continued_without_turns(ask: Ask, opened: OpenedModel) -> None:
    _, (reply,) = ask({"prompt": "tea"}, raw=True)
    assert reply["usage"]["prompt_tokens"] == 1 + len(opened.tokenizer.encode("tea"))
    code, (reply,) = ask({"prompt": "tea", "system": "Be"}, raw=True)
    assert (code, set(reply)) == (3, {"id", "error"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello", "malformed"),
        (b'{"prompt": "x"', "truncated"),
        (b"[1, 2]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "neither prompt nor messages"),
        (b'{"prompt": 5}', "neither prompt nor messages"),
        (b'{"prompt": "x", "messages": []}', "both prompt and messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        (b'{"messages": [{"role": "user"}]}', "no text"),
        (b'{"prompt": "x", "temprature": 1}', "no temprature; did you mean temperature?"),
        (b'{"prompt": "x", "temperature": -1}', "temperature"),
        (b'{"prompt": "x", "max_tokens": "many"}', "max_tokens"),
        (b'{"prompt": "x", "n": 0}', "n is not a number from 1"),
        (b'{"prompt": "x", "n": true}', "n is not a number from 1"),
        (b'{"prompt": "x", "n": 100000}', "n is not a number from 1"),
        (b'{"prompt": "x", "logprobs": 21}', "logprobs"),
        (b'{"prompt": "x", "logit_bias": {"no such token": 1}}', "no such token"),
        (b'{"prompt": "x", "tags": ["a"]}', "tags"),
        (b'{"prompt": "x", "tags": {"a": []}}', "tag a"),
        (b'{"prompt": "x", "system": 5}', "system is not a text"),
        (b'{"prompt": "\xff"}', "byte 13 is not UTF-8"),
        ('{"prompt": "茶"}'.encode("gb18030"), "byte 13 is not UTF-8"),
        (b"\xff\xfe" + '{"prompt": "茶"}'.encode("utf-16-le"), "UTF-16"),
        (b'{"prompt": "a\0b"}', "NUL"),
        (b"\0\0\0", "NUL"),
        (b'{"prompt": "\\ud800"}', "line 2"),
        (b"[" * 100_000, "line 2"),
        (b'{"a":' * 100_000, "line 2"),
        (b'{"id": ' + b"[" * 5_000 + b"]" * 5_000 + b', "prompt": "x"}', "line 2"),
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


def test_a_line_of_ten_megabytes_is_one_error(ask: Ask) -> None:
    code, replies = ask(b'{"prompt": "' + b"x" * 10_000_000 + b'"}', {"prompt": "b"})
    assert code == 3
    assert replies[0] == {"id": 1, "error": "line 1: longer than 8 MB; cut it into several"}
    assert replies[1]["id"] == 2


def test_an_id_that_comes_again_is_an_error(ask: Ask) -> None:
    rows = [{"id": n, "prompt": "x"} for n in (7, "7", 7.5, {"a": 1, "b": 2}, 7)]
    code, replies = ask(*rows, {"id": {"b": 2, "a": 1}, "prompt": "x"})
    assert code == 3
    assert ["error" in reply for reply in replies] == [False, False, False, False, True, True]
    assert replies[4] == {
        "id": 7, "error": "line 5: an earlier line has this id; give each its own"
    }  # fmt: skip


def test_byte_order_mark_and_line_ends_of_windows_are_no_mistake(ask: Ask) -> None:
    code, replies = ask(
        b'\xef\xbb\xbf{"id": 1, "prompt": "\xe8\x8c\xb6"}\r', b"\r", b'{"prompt": "b"}\r'
    )
    assert (code, [reply["id"] for reply in replies]) == (0, [1, 3])


def test_no_lines_give_no_replies(ask: Ask) -> None:
    assert ask(b"") == (0, [])


# -- while it runs -------------------------------------------------------------------------------


def test_lines_are_the_same_however_they_arrive(rng: random.Random) -> None:
    pieces = [b"", b" ", b"a", "茶".encode(), b"x" * 70_000, b"y\r"]
    data = b"\n".join(rng.choice(pieces) for _ in range(40))
    expected = [(n, line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    ours, theirs = os.pipe()

    def write() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(theirs, rest[: rng.choice([1, 7, 5000, 66_000])]) :]
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    reader = LineReader(ours)
    found = []
    while (line := reader.next(wait=True)) is not None:
        found.append((line.number, line.data))
    writer.join()
    os.close(ours)
    assert found == expected


def test_nothing_there_is_no_end() -> None:
    ours, theirs = os.pipe()
    reader = LineReader(ours)
    assert reader.next(wait=False) is None
    os.write(theirs, b"a")
    assert reader.next(wait=False) is None
    os.write(theirs, b"b\nc")
    line = reader.next(wait=False)
    assert line is not None
    assert line.data == b"ab"
    os.close(theirs)
    line = reader.next(wait=False)
    assert line is not None
    assert line.data == b"c"
    assert reader.next(wait=True) is None
    os.close(ours)


def test_a_long_line_is_not_held(rng: random.Random) -> None:
    ours, theirs = os.pipe()
    reader = LineReader(ours)
    for _ in range(LONGEST_LINE // 50_000 + 5):
        os.write(theirs, b"x" * 50_000)
        assert reader.next(wait=False) is None
    assert len(reader._begun) == 0
    os.close(theirs)
    line = reader.next(wait=True)
    assert line == (1, None)
    os.close(ours)


class Watched:
    """JsonLines on a pipe, with a look at every event of the engine."""

    def __init__(
        self, opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, batch_size: int = 2
    ) -> None:
        self.ours, self.theirs = os.pipe()
        self.lines = JsonLines(asker(opened, GREEDY, batch_size), batch_size)
        self.events = 0
        run = self.lines._engine.run

        def watched(*given: Any) -> Any:
            for event in run(*given):
                self.events += 1
                self.look(event)
                yield event

        monkeypatch.setattr(self.lines._engine, "run", watched)

    def look(self, event: object) -> None:
        """Replaced by a test."""

    def write(self, *rows: object) -> None:
        os.write(self.theirs, b"".join(encoded(row) + b"\n" for row in rows))


def test_a_line_that_comes_later_joins_what_is_under_way(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is asked during the first, a long one, and ends before it; the order is kept."""
    watched = Watched(opened, monkeypatch)
    order: list[int] = []

    def look(event: object) -> None:
        if isinstance(event, Piece) and watched.events == 1:
            watched.write({"id": "late", "prompt": "雨", "max_tokens": 1})
            os.close(watched.theirs)
        if not isinstance(event, Piece):
            order.append(event.key)  # type: ignore[attr-defined]
            assert capsys.readouterr().out == "", "the first line has no reply yet"

    watched.look = look  # type: ignore[method-assign]
    bias = {str(opened.tokenizer.turn_end): -100, str(opened.tokenizer.end_of_text): -100}
    watched.write({"id": "long", "prompt": "tea", "max_tokens": 30, "logit_bias": bias})
    assert watched.lines.run(watched.ours) == 0
    os.close(watched.ours)
    assert order == [1, 0]
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reply["id"] for reply in replies] == ["long", "late"]


def test_no_more_than_a_window_is_read_ahead(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the first of many lines is not written, the lines behind it wait in the pipe."""
    watched = Watched(opened, monkeypatch)
    most = 0

    def look(event: object) -> None:
        nonlocal most
        most = max(most, len(watched.lines._window))

    watched.look = look  # type: ignore[method-assign]
    bias = {str(opened.tokenizer.turn_end): -100, str(opened.tokenizer.end_of_text): -100}
    watched.write({"prompt": "tea", "max_tokens": 60, "logit_bias": bias})
    watched.write(*({"prompt": f"{n}", "max_tokens": 1} for n in range(60)))
    os.close(watched.theirs)
    assert watched.lines.run(watched.ours) == 0
    os.close(watched.ours)
    assert most == 8
    assert len(capsys.readouterr().out.splitlines()) == 61
    assert not watched.lines._samples


def test_an_interrupt_leaves_what_is_finished_in_order(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what waited behind an unfinished line."""
    watched = Watched(opened, monkeypatch, batch_size=3)
    ended = 0

    def look(event: object) -> None:
        nonlocal ended
        ended += not isinstance(event, Piece)
        if ended == 3:
            ended = 99
            signal.raise_signal(signal.SIGINT)

    watched.look = look  # type: ignore[method-assign]
    bias = {str(opened.tokenizer.turn_end): -100, str(opened.tokenizer.end_of_text): -100}
    watched.write({"id": 0, "prompt": "a", "max_tokens": 1})
    watched.write({"id": 1, "prompt": "tea", "max_tokens": 60, "logit_bias": bias})
    watched.write(*({"id": n, "prompt": "雨", "max_tokens": 1} for n in (2, 3)))
    watched.write(*({"id": n, "prompt": "b", "max_tokens": 50, "logit_bias": bias} for n in (4, 5)))
    with pytest.raises(KeyboardInterrupt):
        watched.lines.run(watched.ours)
    os.close(watched.ours)
    os.close(watched.theirs)
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reply["id"] for reply in replies] == [0, 2, 3]
    assert all(reply["finish_reason"] == "length" for reply in replies)


def test_an_interrupt_ends_waiting_for_a_line_at_once(opened: OpenedModel) -> None:
    ours, theirs = os.pipe()
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        JsonLines(asker(opened), 2).run(ours)
    timer.join()
    os.close(ours)
    os.close(theirs)
