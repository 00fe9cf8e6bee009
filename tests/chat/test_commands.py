"""The slash commands, as they are typed."""

from __future__ import annotations

import itertools
import math
import random
import re
import signal
import stat
from pathlib import Path

import pytest
import torch

from chatbench.chat import commands_model, sessions
from chatbench.chat.commands import COMMANDS, Draft, Leave, run_command
from chatbench.chat.commands_model import explained, percent, token_spans
from chatbench.chat.commands_settings import SHOWN
from chatbench.chat.completing import completions
from chatbench.chat.display import Shown, Span
from chatbench.chat.interrupt import interruptible
from chatbench.chat.preferences import preferences_path
from chatbench.chat.session import ChatSession
from chatbench.chat.sessions import sessions_folder
from chatbench.conversation import Message
from chatbench.corpus.build import preprocess
from chatbench.corpus.document import Document
from chatbench.corpus.shards import open_corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.engine.engine import Completion, TokenLogprob
from chatbench.errors import UsageError, UserError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import PreprocessSettings, SamplingSettings


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
    assert set(shown) == {*SamplingSettings.__struct_fields__, "markdown", "quiet"}
    session.tags["style"] = "formal"
    assert said(session, "/show parameters") == said(session, "/set")
    assert "tag.style formal" in said(session, "/set").splitlines()


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
        ("presence-penalty -1.5", "presence_penalty", -1.5),
        ("logit_bias 茶=-5", "logit_bias", {"茶": -5.0}),
        ("logit_bias two words 5", "logit_bias", {"two words": 5.0}),
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
     "logit_bias 5", "logit_bias a b", "presence_penalty 3", "quiet loud", "tag. x", "tag.a:b x",
     "top_p 0", "top_p 1.01", "max_tokens 0", "seed -1", "max_tokens none"],
)  # fmt: skip
def test_set_refuses_a_value_that_cannot_be_and_changes_nothing(
    session: ChatSession, typed: str
) -> None:
    before = (session.sampling, session.tags, session.view.quiet)
    with pytest.raises(UsageError, match=typed.split()[0]):
        run_command(session, f"/set {typed}")
    assert (session.sampling, session.tags, session.view.quiet) == before


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


def test_set_switches_what_is_shown(session: ChatSession) -> None:
    assert said(session, "/set quiet") == "quiet on"
    assert said(session, "/set markdown off") == "markdown off"
    assert (session.view.quiet, session.view.markdown) == (True, False)
    assert said(session, "/set parameter markdown on") == "markdown on"
    assert session.view.markdown


def test_a_tag_becomes_control_text_in_the_system_turn(session: ChatSession) -> None:
    session.system = "Be kind"
    unknown = "\nnothing is noted of tags the model has learned"
    assert said(session, "/set tag.style formal") == f"style: formal{unknown}"
    assert said(session, "/set tag.主题=茶  和 书") == f"主题: 茶 和 书{unknown}"
    assert said(session, "/show system") == "Be kind\n\nstyle: formal\n主题: 茶 和 书"
    assert "tag style: formal" in said(session, "/show info")
    assert said(session, "/set tag.style none") == "tag style removed"
    assert session.tags == {"主题": "茶 和 书"}


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


# ---- show


def test_show_names_what_it_can_show(session: ChatSession) -> None:
    with pytest.raises(UsageError, match="did you mean tokens"):
        run_command(session, "/show token")
    for what in SHOWN:
        assert said(session, f"/show {what}")
    list(session.send("茶"))
    for what in SHOWN:
        assert said(session, f"/show {what}")


def test_show_context_counts_what_fills_the_window(session: ChatSession) -> None:
    session.system = "友善"
    for _ in range(9):
        list(session.send("tea tea"))
    shown = said(session, "/show context")
    assert session.left_out > 0
    assert f"{session.used} of {session.context} tokens" in shown
    assert f"exchanges {9 - session.left_out} in the window, {session.left_out} left out" in shown
    with_system = session.tokens([Message("system", "友善"), Message("user", "a")])
    opening = with_system - session.tokens([Message("user", "a")])
    assert f"system turn {opening}, kept free for a reply 3" in shown


def test_show_tokens_spells_every_message(session: ChatSession, rng: random.Random) -> None:
    text = "".join(rng.choices("ab 茶书📚é", k=12)).strip() or "茶"
    session.messages = [Message("user", text)]
    role, _, spelled = said(session, "/show tokens").partition(": ")
    count = len(session.opened.tokenizer.encode(text))
    assert role == f"user {count}"
    pieces = spelled.split("|")
    assert len(pieces) == count
    joined = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()),
                    "".join(pieces).encode())  # fmt: skip
    assert joined.decode() == text


# ---- moving


def test_undo_redo_and_messages_with_numbers(session: ChatSession) -> None:
    for text in ("a", "b", "茶"):
        list(session.send(text))
    assert said(session, "/undo 2") == "took the last 2 exchanges back; /redo returns"
    assert len(session.messages) == 2
    assert said(session, "/redo") == "6 messages again"
    lines = said(session, "/show messages").splitlines()
    assert lines[4] == "5 user: 茶"
    assert said(session, "/undo") == "took the last exchange back; /redo returns"
    for wrong in ("/undo 0", "/undo x", "/undo -1", "/undo 二"):
        with pytest.raises(UsageError, match="no number from 1"):
            run_command(session, wrong)
    assert len(session.messages) == 4


def test_edit_says_a_message_otherwise(session: ChatSession) -> None:
    list(session.send("a"))
    list(session.send("b"))
    reply = run_command(session, "/edit 1  你好，\n世界")
    assert callable(reply)
    list(reply(lambda: False))
    assert session.messages[0] == Message("user", "你好，\n世界")
    assert len(session.messages) == 2
    assert said(session, "/edit 2 Yes.") == "message 2 changed"
    assert session.messages[1] == Message("assistant", "Yes.")


def test_edit_without_a_text_asks_for_the_editor(session: ChatSession) -> None:
    list(session.send("茶\n书"))
    assert run_command(session, "/edit 1") == Draft("茶\n书", 1)
    assert run_command(session, "/edit") == Draft("", None)
    for wrong in ("/edit 3", "/edit x", "/edit 0 text"):
        with pytest.raises(UsageError):
            run_command(session, wrong)


def test_branches_are_made_listed_and_switched(session: ChatSession) -> None:
    list(session.send("a"))
    assert said(session, "/branch 计划") == "on 计划 now; /switch main goes back here"
    list(session.send("茶"))
    run_all(session, "/retry")
    listed = said(session, "/branches").splitlines()
    assert [line[:6].strip() for line in listed] == ["main", "* 计划", "#4"]
    assert said(session, "/switch main") == "on main, 2 messages"
    with pytest.raises(UsageError, match="/switch needs a branch"):
        run_command(session, "/switch")


def run_all(session: ChatSession, line: str) -> list[object]:
    reply = run_command(session, line)
    assert callable(reply)
    return list(reply(lambda: False))


# ---- files


def test_sessions_are_listed_and_loaded_by_name(session: ChatSession, opened: OpenedModel) -> None:
    assert said(session, "/sessions") == "no conversation was kept yet"
    folder = sessions_folder()
    assert folder is not None
    session.keep_in(folder, "茶")
    list(session.send("第一\n问"))
    session.clear()
    list(session.send("b"))
    listed = said(session, "/sessions").splitlines()
    assert len(listed) == 3
    assert listed[1].startswith("* 20")
    assert "茶" in listed[2]
    assert "第一 问" in listed[2]
    assert said(session, "/load 茶") == "loaded 2 messages"
    assert session.messages[0].content == "第一\n问"
    assert session.file is not None
    assert session.file.name == "茶"
    with pytest.raises(UsageError, match="neither a file nor a session"):
        run_command(session, "/load 茶叶")
    session.close()


def test_a_conversation_is_exported_to_read_or_to_train(
    session: ChatSession, tmp_path: Path
) -> None:
    session.system = "友善"
    with pytest.raises(UsageError, match="nothing to export"):
        run_command(session, f"/export {tmp_path}/a.md")
    session.messages = [Message("user", "茶？"), Message("assistant", "Yes *tea*")]
    assert said(session, f"/export {tmp_path}/a b.md") == f"exported {tmp_path}/a b.md"
    written = (tmp_path / "a b.md").read_text("utf-8")
    assert written == "## System\n\n友善\n\n## You\n\n茶？\n\n## Reply\n\nYes *tea*\n"
    run_command(session, f"/export {tmp_path}/a.jsonl")
    (document,) = read_path(tmp_path / "a.jsonl", "a.jsonl", ReadOptions())
    assert document.messages == (Message("system", "友善"), *session.messages)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="exists already"):
        run_command(session, f"/export {tmp_path}/a.jsonl")
    with pytest.raises(UsageError, match=r"end it in \.md or \.jsonl"):
        run_command(session, f"/export {tmp_path}/a.html")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_into_the_next_message(
    session: ChatSession, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "笔记.txt"
    path.write_text(" 茶 tea\n", encoding)
    count = len(session.opened.tokenizer.encode("茶 tea"))
    assert said(session, f"/read {path}").startswith(f"{path}: {count} tokens go with your next")
    list(session.send("why?"))
    assert session.messages[0] == Message("user", "茶 tea\n\nwhy?")
    list(session.send("b"))
    assert session.messages[2] == Message("user", "b"), "once only"
    run_command(session, f"/read {path}")
    said(session, "/read none")
    assert session.attached == []


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"long " * 80, "has .* tokens"), (b" \n", "is empty"), (bytes(range(256)), "is no text")],
)
def test_what_cannot_go_with_a_message_is_refused(
    session: ChatSession, tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        run_command(session, f"/read {path}")
    assert session.attached == []


def test_a_refused_message_keeps_what_was_read_for_the_next(
    session: ChatSession, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("tea")
    run_command(session, f"/read {tmp_path}/a.txt")
    with pytest.raises(UsageError):
        list(session.send("long " * 60))
    list(session.send("b"))
    assert session.messages[0] == Message("user", "tea\n\nb")


@pytest.mark.parametrize("name", ["read", "load", "compare", "export", "save"])
@pytest.mark.parametrize(
    "path",
    ["{}", "/", "..", "x\0y.md", "{}/" + "茶" * 200 + ".md", "/dev/null/x.md", "~nobody-here/x.md"],
)
def test_a_path_that_cannot_be_is_one_sentence(
    session: ChatSession, tmp_path: Path, name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-here").write_text("in the way")
    list(session.send("a"))
    before = session.messages
    with pytest.raises(UserError):
        run_all(session, f"/{name} {path.format(tmp_path)}")
    assert session.messages == before


def test_whatever_is_typed_is_answered_or_refused_in_a_sentence(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sessions_folder()
    assert folder is not None
    session.keep_in(folder)
    words = ["1", "2", "0", "-1", "9" * 30, "茶", "none", "main", "#2", "a.md", "b.jsonl", ".",
             "..", "temperature", "nan", "inf", "tag.x", "stop", "quiet", "on", "\x1b[2J", "\u202e",
             "=", "logit_bias", "clear", "tokens", "~", "/", "\udcff", "²", "½"]  # fmt: skip
    names = [name for name in COMMANDS if name not in ("exit", "compare")]
    for _ in range(150):
        if rng.random() < 0.3:
            # Sampling that cannot say anything was refused when it was set.
            session.sampling = SamplingSettings(max_tokens=2)
            session.system = None
            session.tags.clear()
            session.attached.clear()
            list(session.send(rng.choice(["a", "茶"])))
        line = f"/{rng.choice(names)} {' '.join(rng.choices(words, k=rng.randrange(4)))}"
        try:
            reply = run_command(session, line)
            if callable(reply):
                list(reply(lambda: rng.random() < 0.1))
        except UserError:
            pass
        completions(line, session)
        back = [sessions.read(path) for path in folder.glob("*.jsonl")]
        assert all(stored.conversation.turns for stored in back)
    session.close()


# ---- why


def test_why_tells_what_the_model_thought_of_its_own_reply(session: ChatSession) -> None:
    # Control tokens have names that are no part of the text.
    silent = {str(number): -100.0 for number in session.opened.tokenizer.control_ids}
    session.sampling = SamplingSettings(max_tokens=9, temperature=1.0, logit_bias=silent)
    list(session.send("茶"))
    for fresh in (True, False):
        if not fresh:
            session.trace = None
        shown = run_command(session, "/why")
        assert isinstance(shown, Shown)
        (spans,) = shown.columns
        end = next(n for n, span in enumerate(spans) if "least certain" in span.text)
        text = "".join(span.text for span in spans[:end])
        assert text.strip() == session.messages[-1].content or "\\x" in text
        assert all(span.note.endswith("%") and span.style for span in spans[:end])


@pytest.mark.parametrize(
    ("chances", "listed"),
    [((0.995, 0.9999, 1.0), []), ((0.2, 0.995, 0.98), ["a", "c"]), ((0.5,) * 7, list("abcde"))],
)
def test_why_lists_only_what_was_not_certain(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, chances: tuple[float, ...],
    listed: list[str],
) -> None:  # fmt: skip
    tokens = [
        TokenLogprob(n, text, list(text.encode()), math.log(chance), [(99, "茶", -5.0)])
        for n, (text, chance) in enumerate(zip("abcdefg", chances, strict=False))
    ]
    monkeypatch.setattr(commands_model, "explained", lambda _: tokens)
    shown = run_command(session, "/why")
    assert isinstance(shown, Shown)
    text = "".join(span.text for span in shown.columns[0])
    assert ("all certain" in text) == (not listed)
    assert ("least certain:" in text) == bool(listed)
    assert re.findall(r'^  "(.)"', text, re.M) == listed


def test_the_figures_are_those_of_the_whole_text(session: ChatSession) -> None:
    """The slow twin: a softmax of the model's own logits, token by token."""
    session.sampling = SamplingSettings(max_tokens=6, temperature=1.0)
    list(session.send("tea"))
    trace = session.trace
    assert trace is not None
    ids = [*trace.prompt, *trace.reply]
    model = session.opened.model
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor([ids]))[0]).double()
    logits = logits[:, : session.opened.tokenizer.vocab_size]
    expected = [
        float(logits[at - 1].log_softmax(0)[ids[at]]) for at in range(len(trace.prompt), len(ids))
    ]
    assert [t.logprob for t in explained(session)] == pytest.approx(expected, abs=1e-4)


def token(text: bytes, logprob: float) -> TokenLogprob:
    return TokenLogprob(1, text.decode(errors="backslashreplace"), list(text), logprob, [])


def test_tokens_of_one_character_are_one_span(rng: random.Random) -> None:
    text = "".join(rng.choices("a茶é📚 \n", k=30))
    data = text.encode()
    cuts = sorted({0, len(data), *rng.sample(range(len(data)), k=len(data) // 2)})
    parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
    logprobs = [-rng.random() for _ in parts]
    spans = token_spans([token(p, q) for p, q in zip(parts, logprobs, strict=True)])
    assert "".join(span.text for span in spans) == text
    whole = math.prod(math.exp(q) for q in logprobs)
    assert len(spans) <= len(parts)
    if len(spans) == len(parts):
        return
    assert whole <= min(float(s.note.rstrip("%")) / 100 + 0.01 for s in spans)


def test_bytes_that_never_become_a_character_are_spelled() -> None:
    spans = token_spans([token(b"\xe8\x8c", -1.0), token(b"a", -1.0), token(b"\xff", 0.0)])
    assert [span.text for span in spans] == ["\\xe8\\x8ca", "\\xff"]
    assert spans[0].note == percent(math.exp(-2.0)) == "14%"


@pytest.mark.parametrize(
    ("probability", "shown"), [(1.0, "100%"), (0.5, "50%"), (0.0312, "3.1%"), (0.0, "0.0%")]
)
def test_percents(probability: float, shown: str) -> None:
    assert percent(probability) == shown


def test_there_is_nothing_to_explain_before_a_reply(session: ChatSession) -> None:
    for line in ("/why", "/good", "/bad", "/prefer", "/compare x"):
        with pytest.raises(UsageError, match="no reply yet"):
            run_command(session, line)


# ---- compare


def test_compare_shows_the_reply_beside_that_of_another_model(
    session: ChatSession, base_run: Path
) -> None:
    session.sampling = SamplingSettings(max_tokens=5, temperature=0.0)
    list(session.send("茶"))
    before = session.messages
    (shown,) = run_all(session, f"/compare {base_run}")
    assert isinstance(shown, Shown)
    ours, theirs = shown.columns
    assert ours == [Span(before[-1].content)]
    assert theirs == ours, "the same model says the same"
    assert shown.titles == [str(session.folder), str(session.folder)]
    assert session.messages == before
    assert list(session.others) == [str(base_run)]
    run_all(session, f"/compare {base_run}")
    assert len(session.others) == 1


def test_ctrl_c_while_the_other_model_is_opened_leaves_nothing_of_it(
    session: ChatSession, base_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(session.send("茶"))
    pressed = []

    def half(*given: object) -> OpenedModel:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        monkeypatch.setattr(commands_model, "open_model", half)
        assert run_command(session, f"/compare {base_run}") == f"stopped; {base_run} was not opened"
        assert session.others == {}
        assert not pressed
        signal.raise_signal(signal.SIGINT)
        assert pressed, "outside it is a flag again"
        monkeypatch.undo()
        assert isinstance(run_all(session, f"/compare {base_run}")[-1], Shown)
    finally:
        signal.signal(signal.SIGINT, before)


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- judgements


def preference_documents() -> list[Document]:
    path = preferences_path()
    found = read_path(path, path.name, ReadOptions()) if path.exists() else ()
    return [document for document in found if isinstance(document, Document)]


def turn_to(session: ChatSession, *replies: str) -> None:
    """One question with these replies, the last of them on the path."""
    session.messages = [Message("user", "茶？")]
    asked = session.conversation.tip
    for reply in replies:
        session.conversation.move(asked)
        session.conversation.add(Message("assistant", reply))


def test_one_judgement_is_an_unpaired_row(session: ChatSession) -> None:
    session.system = "友善"
    turn_to(session, "有。")
    assert said(session, "/good") == f"noted in {preferences_path()}"
    (document,) = preference_documents()
    opening = (Message("system", "友善"), Message("user", "茶？"))
    assert document.messages == (*opening, Message("assistant", "有。"))
    assert (document.rejected, document.shape) == (None, "unpaired")
    said(session, "/bad")
    (document,) = preference_documents()
    assert document.rejected == (*opening, Message("assistant", "有。"))
    assert stat.S_IMODE(preferences_path().stat().st_mode) == 0o600


def test_a_good_and_a_bad_reply_are_a_pair(session: ChatSession) -> None:
    turn_to(session, "no", "有。")
    session.conversation.move(2)
    said(session, "/bad")
    session.conversation.move(3)
    assert said(session, "/good") == f"1 pair in {preferences_path()}"
    (document,) = preference_documents()
    asked = Message("user", "茶？")
    assert document.messages == (asked, Message("assistant", "有。"))
    assert document.rejected == (asked, Message("assistant", "no"))
    assert document.shape == "preference"


def test_prefer_makes_pairs_and_goes_on_with_the_best(session: ChatSession) -> None:
    turn_to(session, "一", "二", "三", "二")
    assert said(session, "/prefer").splitlines() == ["1 一", "2 二", "3 三", "4 二"]
    assert said(session, "/prefer 1") == f"2 pairs in {preferences_path()}"
    assert session.messages[-1].content == "一"
    pairs = {(d.messages[-1].content, d.rejected[-1].content) for d in preference_documents()}  # type: ignore[index]
    assert pairs == {("一", "二"), ("一", "三")}
    said(session, "/prefer 3")
    pairs = {(d.messages[-1].content, d.rejected[-1].content) for d in preference_documents()}  # type: ignore[index]
    assert pairs == {("三", "一"), ("三", "二")}, "a change of mind leaves nothing behind"
    with pytest.raises(UsageError, match="no reply 5"):
        run_command(session, "/prefer 5")


def test_a_reply_alone_cannot_be_preferred(session: ChatSession) -> None:
    turn_to(session, "same", "same")
    with pytest.raises(UsageError, match="nothing to prefer it to"):
        run_command(session, "/prefer 1")
    assert not preferences_path().exists()


def test_judgements_leave_other_lines_alone(session: ChatSession, rng: random.Random) -> None:
    path = preferences_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    other = f"not json {rng.random()}\n" + '{"prompt": "p", "completion": "c", "label": true}'
    path.write_text(other)
    turn_to(session, "no", "有。")
    said(session, "/good")
    said(session, "/prefer 2")
    turn_to(session, "more")
    said(session, "/good")
    lines = path.read_text("utf-8").split("\n")
    assert "\n".join(lines[:2]) == other
    assert len(lines) == 5


def test_preprocess_takes_the_judgements(session: ChatSession, tmp_path: Path) -> None:
    for number in range(12):
        session.messages = [Message("user", f"What does tea {number} cost? 第{number}个")]
        session.conversation.add(Message("assistant", f"It costs {number} yuan."))
        if number % 2:
            session.conversation.move(1)
            session.conversation.add(Message("assistant", f"茶卖{number}元。"))
            said(session, "/prefer 1")
        else:
            said(session, "/good" if number % 4 else "/bad")
    out = preprocess(
        PreprocessSettings(
            inputs=[str(preferences_path())], out=str(tmp_path / "c"), vocab_size=300, workers=1,
            val_fraction=0.4, test_fraction=0.3, profile=False,
        )
    )  # fmt: skip
    corpus = open_corpus(out)
    assert sum(len(corpus.split(name)) for name in ("train", "val", "test")) == 12
    assert (out / "dropped.jsonl").read_bytes() == b""


def test_without_a_home_judgements_have_no_place(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHATBENCH_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    turn_to(session, "a")
    with pytest.raises(UsageError, match="no HOME"):
        run_command(session, "/good")


# ---- completion


def test_tab_offers_commands_settings_branches_and_replies(session: ChatSession) -> None:
    turn_to(session, "a", "b")
    session.branch("计划")
    assert set(completions("/", session)) >= {f"/{name}" for name in COMMANDS}
    assert completions("/re", session) == ["/retry", "/redo", "/read", "/regen"]
    assert completions("/set temp", session) == ["temperature"]
    assert completions("/set parameter temp", session) == ["temperature"]
    assert completions("/set quiet ", session) == ["on", "off"]
    assert completions("/show to", session) == ["tokens"]
    assert completions("/switch ", session) == ["main", "计划", "#2"]
    assert completions("/switch 计", session) == ["计划"]
    assert completions("/prefer ", session) == ["1", "2"]
    assert completions("/edit ", session) == ["1", "2"]
    for line in ("", "re", "//re", "/switch a ", "/xyzzy ", "/edit 1 te", "/re\nx"):
        assert completions(line, session) == []


def test_tab_offers_paths_and_sessions(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "茶 notes").mkdir()
    (tmp_path / "茶 notes" / "a.txt").write_text("")
    (tmp_path / "茶.txt").write_text("")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "\x1b[2J").write_text("")
    assert completions("/read ", session) == ["茶 notes/", "茶.txt"]
    assert completions("/read 茶 ", session) == ["茶 notes/"]
    assert completions("/read 茶 notes/", session) == ["茶 notes/a.txt"]
    assert completions("/read .h", session) == [".hidden"]
    assert completions(f"/export {tmp_path}/茶.", session) == [f"{tmp_path}/茶.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions("/read ~/茶.", session) == ["~/茶.txt"]
    assert completions("/read none/", session) == []
    folder = sessions_folder()
    assert folder is not None
    session.keep_in(folder, "茶话")
    list(session.send("a"))
    assert completions("/load 茶话", session) == ["茶话"]
    session.close()
