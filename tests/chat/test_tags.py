"""Tags in a chat and in pipes: what a model has learned is offered, what it has not is told."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.piping import asker

from chatbench import console
from chatbench.chat import start
from chatbench.chat.asking import Asked, Line
from chatbench.chat.commands import run_command
from chatbench.chat.completing import completions
from chatbench.chat.prompting import opening_text
from chatbench.chat.repl import _say_figures
from chatbench.chat.session import ChatSession
from chatbench.chat.sessions import decode, encode
from chatbench.conversation import Message
from chatbench.engine.engine import Completion
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import ChatSettings, SamplingSettings
from chatbench.text.tags import Known
from chatbench.text.template import reply_prompt

KNOWN: Known = {"style": {"formal": 7, "very casual": 5}, "语气": {"正式": 3, "随意": 2}}
FOREIGN_STYLE = "the model has not learned style=foo; it knows formal, very casual"


@pytest.fixture(scope="module")
def taught(base_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose folder says which tags it has learned."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(base_run / "model", folder)
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["chatbench"]["tags"] = KNOWN
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return folder


@pytest.fixture(scope="module")
def opened(taught: Path) -> OpenedModel:
    return open_model(taught, torch.device("cpu"))


@pytest.fixture
def session(opened: OpenedModel) -> ChatSession:
    return ChatSession(opened, SamplingSettings(max_tokens=2))


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(console, "notice", told.append)
    return told


def said(session: ChatSession, line: str) -> str:
    reply = run_command(session, line)
    assert isinstance(reply, str)
    return reply


def prompt_of(opened: OpenedModel, system: str, text: str = "茶?") -> list[int]:
    return reply_prompt(opened.tokenizer, [Message("system", system), Message("user", text)])


@pytest.mark.parametrize(
    ("typed", "tags"),
    [
        ("/set tag.style formal", {"style": "formal"}),
        ("/set tag.style=very casual", {"style": "very casual"}),
        ("/tags style formal", {"style": "formal"}),
        ("/tag style = formal", {"style": "formal"}),
        ("/style formal", {"style": "formal"}),
        ("/语气 随意", {"语气": "随意"}),
        ("/tag other words here", {"other": "words here"}),
    ],
)
def test_a_tag_is_set_however_it_is_typed(
    session: ChatSession, typed: str, tags: dict[str, str]
) -> None:
    said(session, typed)
    assert session.tags == tags
    name = next(iter(tags))
    assert said(session, f"/tag {name} none") == f"tag {name} removed"
    assert session.tags == {}


def test_tags_and_what_was_learned_are_shown(session: ChatSession, base_run: Path) -> None:
    learned = [
        "the model has learned style: formal (7), very casual (5)",
        "the model has learned 语气: 正式 (3), 随意 (2)",
    ]
    assert said(session, "/tags").split("\n") == ["no tag is set", *learned]
    said(session, "/style formal")
    assert said(session, "/tags").split("\n") == ["style: formal", *learned]
    assert "tag style: formal" in said(session, "/show info").split("\n")
    assert said(session, "/style") == "tag style removed"
    other = ChatSession(open_model(base_run, torch.device("cpu")), SamplingSettings())
    assert "nothing is noted" in said(other, "/tags")
    with pytest.raises(UsageError, match="no command /style"):
        run_command(other, "/style formal")
    told = "style: foo\nnothing is noted of tags the model has learned"
    assert said(other, "/set tag.style foo") == told
    assert other.tags == {"style": "foo"}
    assert said(other, "/tag style none") == "tag style removed"


def test_what_was_not_learned_is_told_and_set_all_the_same(session: ChatSession) -> None:
    assert said(session, "/style foo").split("\n") == ["style: foo", FOREIGN_STYLE]
    assert session.tags == {"style": "foo"}
    for typed in ("/set tag.nope x", "/set tag.nope=x", "/tag nope=x"):
        told = said(session, typed).split("\n")
        assert told == ["nope: x", "the model has not learned a tag nope; it knows style, 语气"]


def test_the_model_reads_tags_in_the_order_it_has_learned(
    session: ChatSession, opened: OpenedModel
) -> None:
    for line in ("/tag new x", "/语气 正式", "/style formal"):
        said(session, line)
    session.system = "Hi"
    wanted = "Hi\n\nstyle: formal\n语气: 正式\nnew: x"
    assert said(session, "/show system") == wanted
    session.context = 1000
    assert session.fit([Message("user", "茶?")])[0] == prompt_of(opened, wanted)


def test_tags_are_kept_with_the_conversation(session: ChatSession, tmp_path: Path) -> None:
    said(session, "/style formal")
    session.keep_in(tmp_path, "tea")
    list(session.send("茶?"))
    session.put_tags({"语气": "随意", "style": None})
    stored = decode((tmp_path / "tea.jsonl").read_bytes())
    assert stored.tags == {"语气": "随意"}
    assert decode(encode(stored, opening_text(None, stored.tags))).tags == stored.tags
    session.close()
    again = ChatSession(session.opened, SamplingSettings(max_tokens=2))
    assert again.keep_in(tmp_path, "tea")
    assert again.tags == {"语气": "随意"}
    assert again.opening() == [Message("system", "语气: 随意")]
    again.close()


def test_tags_stand_in_the_figures_below_a_reply(
    session: ChatSession, capsys: pytest.CaptureFixture[str]
) -> None:
    said(session, "/style formal")
    completion = next(e for e in session.send("a") if isinstance(e, Completion))
    _say_figures(session, completion)
    assert "style: formal" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("/sty", ["/style"]),
        ("/语", ["/语气"]),
        ("/style ", ["formal", "very casual", "none"]),
        ("/style very c", ["casual"]),
        ("/set tag.", ["tag.style", "tag.语气"]),
        ("/set tag.style f", ["formal"]),
        ("/set tag.语气 ", ["正式", "随意", "none"]),
        ("/tags ", ["style", "语气"]),
        ("/tag style n", ["none"]),
        ("/set tag.other ", ["none"]),
    ],
)
def test_tab_offers_what_was_learned(session: ChatSession, line: str, offered: list[str]) -> None:
    assert completions(line, session) == offered


# ---- pipes


def asked(opened: OpenedModel, row: dict[str, Any], **given: Any) -> Asked:
    found = asker(opened, known_tags=KNOWN, **given).line(Line(1, json.dumps(row).encode()))
    assert not found.error, found.error
    return found


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({}, "style: formal"),
        ({"tags": {"语气": "a"}}, "style: formal\n语气: a"),
        ({"tags": {"style": "very casual"}}, "style: very casual"),
        ({"system": "Be kind"}, "Be kind\n\nstyle: formal"),
        ({"tags": {"style": None, "语气": "正式"}}, "语气: 正式"),
    ],
)
def test_a_lines_own_tags_count_more_than_the_command_lines(
    opened: OpenedModel, row: dict[str, Any], system: str
) -> None:
    found = asked(opened, {"prompt": "茶?", **row}, tags={"style": "formal"})
    assert found.requests[0].ids == prompt_of(opened, system)


def test_a_line_may_be_without_the_command_lines_tags(opened: OpenedModel) -> None:
    found = asked(opened, {"prompt": "茶?", "tags": {"style": None}}, tags={"style": "formal"})
    assert found.requests[0].ids == reply_prompt(opened.tokenizer, [Message("user", "茶?")])


def test_a_prompt_has_them_as_well(opened: OpenedModel) -> None:
    (request,) = asker(opened, tags={"style": "formal"}, known_tags=KNOWN).text("茶?").requests
    assert request.ids == prompt_of(opened, "style: formal")


def test_what_was_not_learned_is_told_once(opened: OpenedModel, notices: list[str]) -> None:
    made = asker(opened, known_tags=KNOWN)
    for value in ("foo", "formal", "foo"):
        made.line(Line(1, json.dumps({"prompt": "a", "tags": {"style": value}}).encode()))
    assert notices == [FOREIGN_STYLE]
    for number in range(50):
        made.line(Line(1, json.dumps({"prompt": "a", "tags": {"style": f"x{number}"}}).encode()))
    assert len(notices) == 20


def test_hostile_tags_are_text(opened: OpenedModel, rng: random.Random) -> None:
    for value in ("<|im_end|>", "<|im_start|>", "b\nc: d", "\x1b[m"):
        found = asked(opened, {"prompt": "a", "tags": {"a:\nc": value, "x": rng.randrange(9)}})
        prompt = found.requests[0].ids
        turns = [n for n in prompt if n == opened.tokenizer.template.turn_start]
        assert len(turns) == 3


@pytest.mark.parametrize("tag", ["style", "=x", "style="])
def test_flags_that_are_no_tags_are_refused_before_the_model_is_opened(tag: str) -> None:
    settings = ChatSettings(model="nowhere", prompt="a", tag=[tag])
    with pytest.raises(UsageError, match="such as --tag style=formal"):
        start.chat(settings)


def test_raw_texts_have_no_tags() -> None:
    settings = ChatSettings(model="nowhere", prompt="a", raw=True, tag=["style=formal"])
    with pytest.raises(UsageError, match="has no --tag"):
        start.chat(settings)


def test_the_command_line_gives_a_conversation_its_tags(
    taught: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(
        "chatbench.chat.repl.repl", lambda session, keep_history: seen.append(session.tags) or 0
    )
    monkeypatch.setattr(console, "stdin_is_terminal", lambda: True)
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    tags = ["style=foo", "语气=正式"]
    settings = ChatSettings(model=str(taught), device="cpu", tag=tags, save=False)
    assert start.chat(settings) == 0
    assert seen == [{"style": "foo", "语气": "正式"}]
    assert notices == [FOREIGN_STYLE]


def test_the_program_answers_under_a_tag(
    taught: Path, opened: OpenedModel, cli: Callable[..., Any]
) -> None:
    done = cli(
        "chat", "-m", taught, "-p", "茶?", "--json", "--tag", "style=foo", "--temperature", "0",
        "--max-tokens", "2", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert FOREIGN_STYLE in done.stderr
    told = json.loads(done.stdout)
    assert told["usage"]["prompt_tokens"] == len(prompt_of(opened, "style: foo"))
