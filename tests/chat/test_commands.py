"""The slash commands, as they are typed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from chatbench.chat.commands import COMMANDS, Leave, run_command
from chatbench.chat.session import ChatSession
from chatbench.engine.engine import Completion
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture
def session(opened: OpenedModel) -> ChatSession:
    return ChatSession(opened, SamplingSettings(max_tokens=3))


def said(session: ChatSession, line: str) -> str:
    reply = run_command(session, line)
    assert isinstance(reply, str)
    return reply


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_one_line_of_help(session: ChatSession, name: str) -> None:
    words = COMMANDS[name].__doc__
    assert words
    assert "\n" not in words
    (line,) = [line for line in said(session, "/help").splitlines() if line.startswith(f"/{name} ")]
    assert line.endswith(words)


def test_a_question_mark_is_help_too(session: ChatSession) -> None:
    assert said(session, "/?") == said(session, "/help")


@pytest.mark.parametrize("name", ["exit", "quit", "bye"])
def test_every_word_for_leaving_leaves(session: ChatSession, name: str) -> None:
    with pytest.raises(Leave):
        run_command(session, f"/{name}")


@pytest.mark.parametrize("name", ["clear", "new"])
def test_every_word_for_clearing_clears(session: ChatSession, name: str) -> None:
    list(session.send("a"))
    assert said(session, f"/{name}") == "cleared"
    assert session.messages == []


@pytest.mark.parametrize("name", ["retry", "regen"])
def test_every_word_for_retrying_answers_anew_until_stopped(
    session: ChatSession, name: str
) -> None:
    list(session.send("a"))
    reply = run_command(session, f"/{name}")
    assert callable(reply)
    last = list(reply(lambda: True))[-1]
    assert isinstance(last, Completion)
    assert last.finish_reason in ("cancelled", "stop")
    assert len(last.ids) <= 1


@pytest.mark.parametrize(("typed", "meant"), [("/hlep", "/help"), ("/retyr", "/retry")])
def test_an_unknown_command_names_the_nearest(session: ChatSession, typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_command(session, typed)
    assert str(caught.value) == f"there is no command {typed}; did you mean {meant}?"


@pytest.mark.parametrize("line", ["/", "/xyzzy now", "/HELP", "/etc/passwd"])
def test_no_command_is_guessed(session: ChatSession, line: str) -> None:
    with pytest.raises(UsageError, match="there is no command /"):
        run_command(session, line)


def test_set_alone_shows_every_setting(session: ChatSession) -> None:
    shown = dict(line.split(" ", 1) for line in said(session, "/set").splitlines())
    assert shown["temperature"] == "0.7"
    assert set(shown) == set(SamplingSettings.__struct_fields__)


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("temperature 0.3", "temperature", 0.3),
        ("temperature=0.3", "temperature", 0.3),
        ("temperature = 0.3", "temperature", 0.3),
        ("parameter temperature 0.3", "temperature", 0.3),
        ("temp 0", "temperature", 0.0),
        ("top_k 7", "top_k", 7),
        ("top-k 7", "top_k", 7),
        ("max-new-tokens 9", "max_tokens", 9),
        ("repeat-penalty 1.5", "repetition_penalty", 1.5),
        ("seed 12", "seed", 12),
        ("seed none", "seed", None),
        ("stop 的", "stop", ["的"]),
        ("stop 12", "stop", ["12"]),
        ("stop", "stop", []),
    ],
)
def test_set_changes_a_setting_by_any_of_its_names(
    session: ChatSession, typed: str, name: str, value: object
) -> None:
    assert said(session, f"/set {typed}") == f"{name} {value}"
    assert getattr(session.sampling, name) == value


@pytest.mark.parametrize(
    "typed",
    ["temperature -1", "temperature warm", "temperature nan", "temperature", "top_k 1.5",
     "top_p 0", "top_p 1.01", "max_tokens 0", "seed -1", "max_tokens none"],
)  # fmt: skip
def test_set_refuses_a_value_that_cannot_be_and_changes_nothing(
    session: ChatSession, typed: str
) -> None:
    before = session.sampling
    with pytest.raises(UsageError, match=typed.split()[0]):
        run_command(session, f"/set {typed}")
    assert session.sampling == before


def test_set_names_the_nearest_setting(session: ChatSession) -> None:
    with pytest.raises(UsageError) as caught:
        run_command(session, "/set temprature 1")
    assert str(caught.value) == "there is no setting temprature; did you mean temperature?"


def test_the_system_prompt_is_set_shown_and_removed(session: ChatSession) -> None:
    assert said(session, "/system") == "system: (none)"
    list(session.send("a"))
    said(session, "/system Answer in verse, 用中文")
    assert (session.system, session.messages) == ("Answer in verse, 用中文", [])
    assert said(session, "/system") == "system: Answer in verse, 用中文"
    said(session, "/system clear")
    assert session.system is None


def test_save_and_load_give_the_conversation_back(
    session: ChatSession, tmp_path: Path, rng: random.Random
) -> None:
    list(session.send(f"number {rng.random()}"))
    kept = list(session.messages)
    path = tmp_path / "my chat 聊天.jsonl"
    assert said(session, f"/save {path}") == f"saved {path}"
    said(session, "/clear")
    assert said(session, f"/load {path}") == "loaded 2 messages"
    assert session.messages == kept


def test_a_tilde_is_the_persons_home(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    list(session.send("a"))
    assert said(session, "/save ~/chat.jsonl") == "saved ~/chat.jsonl"
    assert (tmp_path / "chat.jsonl").is_file()
    assert said(session, "/load ~/chat.jsonl") == "loaded 2 messages"


@pytest.mark.parametrize("name", ["save", "load"])
def test_save_and_load_need_a_file_name(session: ChatSession, name: str) -> None:
    with pytest.raises(UsageError, match=f"/{name} needs a file name"):
        run_command(session, f"/{name}")


def test_show_says_how_full_the_context_is(session: ChatSession) -> None:
    list(session.send("a"))
    shown = said(session, "/show")
    assert f"model {session.folder}" in shown
    assert f"context {session.used} of {session.context} tokens" in shown
    assert session.used > 0
