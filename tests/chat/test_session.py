"""A conversation that remembers, forgets in whole turns, and survives being stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatbench.chat.session import ChatSession, Event, Forgotten
from chatbench.conversation import Message
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.engine.engine import Completion, Piece
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings
from chatbench.text.template import reply_prompt


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


def test_the_oldest_exchanges_are_forgotten_whole_and_the_person_is_told(
    opened: OpenedModel,
) -> None:
    session = session_of(opened, system="Hi")
    told = []
    for _ in range(12):
        events = list(session.send("tea tea"))
        told += [event.turns for event in events if isinstance(event, Forgotten)]
        reply = completed(events)
        assert reply.prompt_tokens + 3 <= session.context
        forgotten = events[0].turns if isinstance(events[0], Forgotten) else 0
        left = [Message("system", "Hi"), *session.messages[2 * forgotten : -1]]
        assert reply.prompt_tokens == token_count(opened, left)
    assert told
    assert told == sorted(told)
    assert len(session.messages) == 24, "what the model forgot is still there to be saved"


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
    assert len(reply.ids) == 5
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
    # What the model read and wrote, and at most the end of the last turn.
    assert 0 <= other.used - session.used <= 2


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


def test_a_refused_retry_keeps_the_reply(opened: OpenedModel) -> None:
    session = ChatSession(opened, SamplingSettings(max_tokens=2))
    list(session.send("hi"))
    before = list(session.messages)
    session.system = "long " * opened.model.config.context
    with pytest.raises(UsageError):
        list(session.retry())
    assert session.messages == before
