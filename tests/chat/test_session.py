"""A conversation that remembers, forgets in whole turns, and survives being stopped."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.chat import sessions
from chatbench.chat.keeping import begin
from chatbench.chat.session import ChatSession, Event, Forgotten
from chatbench.conversation import Message
from chatbench.corpus.cleaning.stages import tagged
from chatbench.corpus.document import Document
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.engine.engine import Completion, Piece
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import ChatSettings, SamplingSettings
from chatbench.text.template import render, reply_prompt


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture(scope="module")
def endless(base_run: Path) -> OpenedModel:
    """The same, but it never ends a reply by itself."""
    opened = open_model(base_run, torch.device("cpu"))
    with torch.no_grad():  # logits of zero, which are never the largest
        opened.model.model.embed_tokens.weight[list(opened.tokenizer.control_ids)] = 0.0
    return opened


def session_of(
    opened: OpenedModel, system: str | None = None, tokens: int = 3, seed: int | None = None
) -> ChatSession:
    return ChatSession(opened, SamplingSettings(max_tokens=tokens, seed=seed), system)


def completed(events: list[Event]) -> Completion:
    assert isinstance(events[-1], Completion)
    return events[-1]


def token_count(opened: OpenedModel, messages: list[Message]) -> int:
    return len(reply_prompt(opened.tokenizer, messages))


def after(count: int) -> Callable[[], bool]:
    """Says stop when asked for the `count`th time."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def test_a_conversation_keeps_its_turns_in_order(opened: OpenedModel) -> None:
    session = session_of(opened)
    first = completed(list(session.send("a")))
    second = completed(list(session.send("b")))
    assert session.messages == [
        Message("user", "a"), Message("assistant", first.text.strip()),
        Message("user", "b"), Message("assistant", second.text.strip()),
    ]  # fmt: skip
    assert second.prompt_tokens == token_count(opened, session.messages[:3])


def test_the_pieces_of_a_reply_are_its_text(opened: OpenedModel) -> None:
    events = list(session_of(opened, tokens=12).send("tea?"))
    pieces = [event.text for event in events if isinstance(event, Piece)]
    assert "".join(pieces) == completed(events).text


def test_the_second_turn_reuses_the_cache(opened: OpenedModel) -> None:
    session = session_of(opened)
    assert completed(list(session.send("a"))).cached_tokens == 0
    assert completed(list(session.send("b"))).cached_tokens > 0


def test_a_warm_cache_answers_as_a_cold_one(opened: OpenedModel, rng: random.Random) -> None:
    seed = rng.randrange(1 << 20)
    warm = session_of(opened, seed=seed)
    list(warm.send("a"))
    cold = session_of(opened, seed=seed + 1)
    cold.messages = list(warm.messages)
    ours, theirs = completed(list(warm.send("b"))), completed(list(cold.send("b")))
    assert ours.ids == theirs.ids
    assert (ours.cached_tokens > 0, theirs.cached_tokens) == (True, 0)


def test_the_system_prompt_comes_first_and_stays(opened: OpenedModel) -> None:
    session = session_of(opened, system="Be kind")
    for text in ("a", "b", "c"):
        reply = completed(list(session.send(text)))
    whole = [Message("system", "Be kind"), *session.messages[:-1]]
    alone = [Message("system", "Be kind"), Message("user", "c")]
    assert reply.prompt_tokens in {token_count(opened, whole[:1] + whole[n:]) for n in (1, 3, 5)}
    assert reply.prompt_tokens >= token_count(opened, alone)


def test_the_oldest_exchanges_are_forgotten_whole_and_the_person_is_told_once(
    opened: OpenedModel,
) -> None:
    session = session_of(opened, system="Hi")
    session.tags["style"] = "正式"
    told: list[int] = []
    for turn in range(16):
        # Short ones later on, some of which still fit.
        events = list(session.send("tea tea" if turn % 3 == 0 else "a"))
        news = [event.turns for event in events if isinstance(event, Forgotten)]
        told += news
        reply = completed(events)
        assert reply.prompt_tokens + 3 <= session.context
        assert news == [] or events[0] == Forgotten(news[0])
        forgotten = told[-1] if told else 0
        assert session.left_out == forgotten
        opening = Message("system", "Hi\n\nstyle: 正式")
        left = [opening, *session.messages[2 * forgotten : -1]]
        assert reply.prompt_tokens == token_count(opened, left)
    assert told
    assert told == sorted(set(told)), "told once per change"
    assert len(session.messages) == 32, "what the model forgot is still there to be saved"


def test_a_message_too_long_is_refused_with_its_length_and_nothing_changes(
    opened: OpenedModel,
) -> None:
    session = session_of(opened)
    list(session.send("a"))
    before = list(session.messages)
    text = "long " * 60
    with pytest.raises(UsageError, match=str(token_count(opened, [Message("user", text)]))):
        list(session.send(text))
    assert session.messages == before
    assert completed(list(session.send("b"))).text is not None


def test_a_stopped_reply_is_kept_as_far_as_it_came(endless: OpenedModel) -> None:
    session = session_of(endless, tokens=30)
    events = list(session.send("a", after(4)))
    reply = completed(events)
    assert reply.finish_reason == "cancelled"
    assert len(reply.ids) == 4
    assert session.messages[-1] == Message("assistant", reply.text.strip())
    assert completed(list(session.send("b"))).cached_tokens > 0, "and the conversation goes on"


def test_retry_answers_the_last_message_anew(endless: OpenedModel) -> None:
    session = session_of(endless, tokens=12, seed=3)
    list(session.send("a"))
    first = list(session.messages)
    again = completed(list(session.retry()))
    assert session.messages[0] == first[0]
    assert len(session.messages) == 2
    assert again.text.strip() == session.messages[1].content
    assert session.messages[1] != first[1], "the seed moves on with every reply"


def test_retry_can_be_stopped(endless: OpenedModel) -> None:
    session = session_of(endless, tokens=30)
    list(session.send("a"))
    assert completed(list(session.retry(after(2)))).finish_reason == "cancelled"


def test_there_is_nothing_to_retry_before_the_first_message(opened: OpenedModel) -> None:
    with pytest.raises(UsageError, match="nothing to answer again"):
        list(session_of(opened).retry())


def test_the_same_seed_gives_the_same_conversation(opened: OpenedModel, rng: random.Random) -> None:
    seed = rng.randrange(1 << 20)

    def talk() -> list[Message]:
        session = session_of(opened, tokens=8, seed=seed)
        for text in ("a", "b"):
            list(session.send(text))
        return session.messages

    assert talk() == talk()


def test_clear_forgets_the_conversation_and_keeps_the_system_prompt(opened: OpenedModel) -> None:
    session = session_of(opened, system="S")
    list(session.send("a"))
    session.clear()
    assert (session.messages, session.used, session.system) == ([], 0, "S")


def test_a_saved_conversation_is_loaded_as_it_was(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened, system="友善")
    list(session.send("茶 <|x|>"))
    session.save(tmp_path / "chat.jsonl")
    other = session_of(opened)
    other.load(tmp_path / "chat.jsonl")
    assert (other.system, other.messages) == (session.system, session.messages)
    row = json.loads((tmp_path / "chat.jsonl").read_text("utf-8"))
    assert row["messages"][0] == {"role": "system", "content": "友善"}


def test_a_saved_conversation_is_training_data(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened, system="Be kind")
    list(session.send("a"))
    session.save(tmp_path / "chat.jsonl")
    (document,) = read_path(tmp_path / "chat.jsonl", "chat.jsonl", ReadOptions())
    assert document.messages == (Message("system", "Be kind"), *session.messages)  # type: ignore[union-attr]


def test_an_empty_conversation_is_not_saved(opened: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to save"):
        session_of(opened, system="S").save(tmp_path / "chat.jsonl")
    assert not (tmp_path / "chat.jsonl").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hello", b"[]", b'{"a": 1}', b'{"messages": []}', b"\xff\xfe",
                b'{"messages": [{"role": "robot", "content": "x"}]}'],
)  # fmt: skip
def test_what_is_no_conversation_is_not_loaded(
    opened: OpenedModel, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content)
    session = session_of(opened)
    list(session.send("a"))
    before = list(session.messages)
    with pytest.raises(UsageError, match="holds no conversation"):
        session.load(path)
    assert session.messages == before


def test_a_loaded_conversation_fills_the_context(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened)
    list(session.send("茶"))
    session.save(tmp_path / "chat.jsonl")
    other = session_of(opened)
    other.load(tmp_path / "chat.jsonl")
    assert other.used == len(render(opened.tokenizer, session.messages).ids)


def test_turns_that_the_template_refuses_are_not_loaded(base_run: Path, tmp_path: Path) -> None:
    template = tmp_path / "users.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    opened = open_model(base_run, torch.device("cpu"), template=str(template))
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    path.write_text(json.dumps({"messages": turns}))
    session = session_of(opened, system="S")
    with pytest.raises(UsageError, match="no tools"):
        session.load(path)
    assert (session.system, session.messages, session.used) == ("S", [], 0)


def test_a_missing_file_is_named(opened: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        session_of(opened).load(tmp_path / "none.jsonl")


def test_saving_adds_a_line_and_keeps_those_before(opened: OpenedModel, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"messages": "older"}')
    session = ChatSession(opened, SamplingSettings(max_tokens=2))
    list(session.send("hi"))
    session.save(path)
    list(session.send("again"))
    session.save(path)
    lines = path.read_text().splitlines()
    assert lines[0] == '{"messages": "older"}'
    assert [len(json.loads(line)["messages"]) for line in lines[1:]] == [2, 4]
    session.load(path)
    assert len(session.messages) == 4


def test_undo_gives_the_context_back(opened: OpenedModel) -> None:
    session = session_of(opened)
    list(session.send("a"))
    once = session.messages
    list(session.send("b"))
    assert session.undo() == 1
    assert session.messages == once
    assert session.used == len(render(opened.tokenizer, once).ids)
    session.redo()
    assert len(session.messages) == 4
    assert session.undo(9) == 2
    assert (session.messages, session.used) == ([], 0)


def test_retry_keeps_the_reply_before_beside_the_new_one(endless: OpenedModel) -> None:
    session = session_of(endless, tokens=5)
    list(session.send("a"))
    first = session.messages[1].content
    list(session.retry())
    replies = session.conversation.alternatives(session.conversation.last_reply())
    assert [turn.message.content for turn in replies] == [first, session.messages[1].content]
    session.switch("#2")
    assert session.messages[1].content == first


def test_an_edited_message_is_answered_and_the_old_path_stays(opened: OpenedModel) -> None:
    session = session_of(opened)
    for text in ("a", "b", "c"):
        list(session.send(text))
    before = session.messages
    reply = completed(list(session.edit(3, "茶？")))
    assert session.messages[:3] == [*before[:2], Message("user", "茶？")]
    assert len(session.messages) == 4
    assert reply.prompt_tokens == token_count(opened, session.messages[:3])
    session.switch("#6")
    assert session.messages == before


def test_an_edited_reply_is_taken_as_it_is(opened: OpenedModel) -> None:
    session = session_of(opened)
    list(session.send("a"))
    assert list(session.edit(2, "Yes. 有。")) == []
    assert session.messages == [Message("user", "a"), Message("assistant", "Yes. 有。")]
    reply = completed(list(session.send("b")))
    assert reply.prompt_tokens == token_count(opened, session.messages[:3])


@pytest.mark.parametrize(("number", "text"), [(0, "x"), (3, "x"), (-1, "x"), (1, " \n")])
def test_what_cannot_be_edited_changes_nothing(opened: OpenedModel, number: int, text: str) -> None:
    session = session_of(opened)
    list(session.send("a"))
    before = session.messages
    with pytest.raises(UsageError):
        list(session.edit(number, text))
    assert session.messages == before


def test_an_edit_that_is_too_long_changes_nothing(opened: OpenedModel) -> None:
    session = session_of(opened)
    list(session.send("a"))
    before = (session.messages, dict(session.conversation.turns))
    with pytest.raises(UsageError, match="tokens"):
        list(session.edit(1, "long " * 60))
    assert (session.messages, session.conversation.turns) == before


def test_branches_go_their_own_ways(opened: OpenedModel) -> None:
    session = session_of(opened)
    list(session.send("a"))
    assert session.branch("计划") == "计划"
    list(session.send("b"))
    session.switch("main")
    assert len(session.messages) == 2
    list(session.send("c"))
    session.switch("计划")
    assert session.messages[2] == Message("user", "b")
    assert session.used == session.count(session.messages)


def test_tags_stand_in_the_system_turn_as_a_corpus_has_them(
    opened: OpenedModel, tmp_path: Path
) -> None:
    row = {"messages": [{"role": "system", "content": " Be kind \n"},
                        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
           "style": "formal", "topic": "茶"}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (document,) = read_path(tmp_path / "a.jsonl", "a.jsonl", ReadOptions())
    assert isinstance(document, Document)
    told = tagged(document, ["style", "topic"], 0.0, b"").turns()
    assert told is not None
    session = session_of(opened, system=" Be kind \n")
    session.tags = {"style": "formal", "topic": "茶"}
    assert session.opening() == [told[0]]
    session.system = None
    assert session.opening() == [Message("system", "style: formal\ntopic: 茶")]


def test_a_half_character_from_a_terminal_is_no_end(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened)
    session.keep_in(tmp_path)
    list(session.send("a\udcff茶"))
    assert session.messages[0].content == "a?茶"


# ---- kept


def test_a_conversation_is_kept_after_every_message(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened, system="友善")
    session.keep_in(tmp_path, "茶")
    seen: list[list[Message]] = []

    def look() -> bool:
        seen.append(sessions.read(tmp_path / "茶.jsonl").conversation.messages())
        return False

    list(session.send("a", look))
    assert seen[0] == [Message("user", "a")], "before the reply is there"
    list(session.retry())
    list(session.send("b"))
    session.undo()
    session.close()
    back = session_of(opened)
    assert back.keep_in(tmp_path, "茶")
    assert (back.messages, back.system) == (session.messages, "友善")
    assert back.conversation.turns == session.conversation.turns
    assert (back.used, back.file.name if back.file else "") == (session.used, "茶")


def test_clear_leaves_what_was_kept_and_begins_another(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened)
    session.keep_in(tmp_path)
    list(session.send("a"))
    session.clear()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    list(session.send("b"))
    found = {
        path.name: sessions.read(path).conversation.messages()[0].content
        for path in tmp_path.glob("*.jsonl")
    }
    assert sorted(found.values()) == ["a", "b"]


def test_a_system_prompt_set_before_the_first_message_keeps_the_sessions_name(
    opened: OpenedModel, tmp_path: Path
) -> None:
    session = session_of(opened)
    session.keep_in(tmp_path, "茶")
    session.system = "友善"
    session.clear()
    list(session.send("a"))
    assert sessions.read(tmp_path / "茶.jsonl").system == "友善"


def test_loading_the_open_session_keeps_its_name(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = session_of(opened)
    session.keep_in(tmp_path, "茶")
    list(session.send("a"))
    assert session.keep_in(tmp_path, "茶")
    assert (session.file.name if session.file else "") == "茶"
    assert "another chat" not in capsys.readouterr().err


def test_nothing_is_kept_before_something_is_said(opened: OpenedModel, tmp_path: Path) -> None:
    session = session_of(opened)
    session.keep_in(tmp_path)
    with pytest.raises(UsageError):
        list(session.send("long " * 60))
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_a_second_chat_on_a_session_goes_on_with_a_copy(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = session_of(opened), session_of(opened)
    first.keep_in(tmp_path, "茶")
    list(first.send("a"))
    assert second.keep_in(tmp_path, "茶")
    assert second.messages == first.messages
    assert "session 茶 is open in another chat; this one is 茶-2" in capsys.readouterr().err
    list(second.send("b"))
    list(first.send("c"))
    texts = [
        [m.content for m in sessions.read(tmp_path / name).conversation.messages()][2]
        for name in ("茶.jsonl", "茶-2.jsonl")
    ]
    assert texts == ["c", "b"]


def test_a_disk_that_refuses_does_not_end_the_talk(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    session = session_of(opened)
    session.keep_in(tmp_path / "file" / "sessions", "茶")
    for text in ("a", "b"):
        completed(list(session.send(text)))
    assert capsys.readouterr().err.count("this conversation is not kept") == 1


def begun(opened: OpenedModel, **settings: object) -> ChatSession:
    chat = ChatSettings(model="m", **settings)  # type: ignore[arg-type]
    session = ChatSession(opened, SamplingSettings(max_tokens=2), chat.system)
    begin(session, chat)
    return session


def test_continue_takes_up_the_newest_conversation(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sessions.sessions_folder()
    assert folder is not None
    for age, name in enumerate(["new", "旧"]):
        session = begun(opened, session=name)
        list(session.send(f"I am {name}"))
        session.close()
        os.utime(folder / f"{name}.jsonl", (1000 - age, 1000 - age))
    again = begun(opened, continue_=True)
    assert again.messages[0].content == "I am new"
    assert "session new, 2 messages" in capsys.readouterr().err
    again.close()
    named = begun(opened, session="旧", system="Be kind")
    assert (named.messages[0].content, named.system) == ("I am 旧", "Be kind")
    named.close()


def test_the_program_goes_on_where_it_was_left(base_run: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")

    def chat(*flags: str) -> Any:
        arguments = ["-m", "chatbench", "chat", "-m", str(base_run), "--max-tokens", "3", *flags]
        child = pexpect.spawn(
            sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(24, 120),
            env={**os.environ, "CHATBENCH_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"},
        )  # fmt: skip
        return child

    first = chat("--session", "茶话")
    # What is typed before the prompt is there would end in a line feed, not in Enter.
    prompt = r"\x1b\[\?2004h.*?>>>.*?\x1b\[\?25h"
    first.expect("/help shows")
    first.expect(prompt)
    first.send("你好\r")
    first.expect("tok/s")
    first.expect(prompt)
    first.send("/exit\r")
    first.expect(pexpect.EOF)
    first.close()
    (document,) = read_path(tmp_path / "sessions" / "茶话.jsonl", "s", ReadOptions())
    assert isinstance(document, Document)
    assert (document.messages or ())[0] == Message("user", "你好")
    second = chat("--continue")
    second.expect("session 茶话, 2 messages")
    second.expect(prompt)
    second.send("/show messages\r")
    second.expect("1 user: 你好")
    second.expect(prompt)
    second.send("/exit\r")
    second.expect(pexpect.EOF)
    second.close()
    assert (first.exitstatus, second.exitstatus) == (0, 0)
    assert [p.name for p in (tmp_path / "sessions").iterdir()] == ["茶话.jsonl"]


def test_continue_without_an_earlier_conversation_begins_one(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    session = begun(opened, continue_=True)
    assert session.messages == []
    assert "no conversation was kept yet" in capsys.readouterr().err


def test_without_a_home_nothing_is_kept_and_that_is_said_once(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CHATBENCH_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    session = begun(opened)
    for text in ("a", "b"):
        list(session.send(text))
    assert capsys.readouterr().err.count("not kept") == 1
    with pytest.raises(UsageError, match="no HOME"):
        begun(opened, session="茶")


def test_saving_can_be_switched_off(opened: OpenedModel) -> None:
    folder = sessions.sessions_folder()
    assert folder is not None
    session = begun(opened, save=False)
    list(session.send("a"))
    assert not folder.exists()
    kept = begun(opened, session="茶")
    list(kept.send("a"))
    kept.close()
    before = (folder / "茶.jsonl").read_bytes()
    reader = begun(opened, session="茶", save=False)
    assert reader.messages == kept.messages
    list(reader.send("b"))
    assert (folder / "茶.jsonl").read_bytes() == before


def test_a_refused_retry_keeps_the_reply(opened: OpenedModel) -> None:
    session = ChatSession(opened, SamplingSettings(max_tokens=2))
    list(session.send("hi"))
    before = list(session.messages)
    session.system = "long " * opened.model.config.context
    with pytest.raises(UsageError):
        list(session.retry())
    assert session.messages == before
