"""Conversations as trees, and their files: training data, one chat at a time, never a crash."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatbench.chat import sessions
from chatbench.chat.prompting import opening_text
from chatbench.chat.sessions import SessionFile, Stored, decode, encode
from chatbench.chat.tree import Conversation
from chatbench.conversation import Message
from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import open_corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.errors import UsageError
from chatbench.settings import PreprocessSettings

WORDS = ("tea", "茶", "two\nlines", '"quoted"', "<|im_end|>", "ﬁn", "👩‍👩‍👧", "一二三")


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


def talk(*texts: str) -> Conversation:
    """Asked and answered in turns."""
    return Conversation([(bot if n % 2 else user)(text) for n, text in enumerate(texts)])


def contents(tree: Conversation) -> list[str]:
    return [message.content for message in tree.messages()]


def grown(rng: random.Random) -> Conversation:
    """A tree after many random moves."""
    tree = Conversation()
    for step in range(rng.randrange(1, 40)):
        kind = rng.random()
        text = f"{rng.choice(WORDS)} {step}"
        if kind < 0.6 or not tree.turns:
            path = tree.path()
            last = path[-1].message.role if path else "assistant"
            if last == "user":
                tree.add(bot(text), stopped=rng.random() < 0.2)
            else:
                tree.add(user(text))
        elif kind < 0.7 and any(m.role == "user" for m in tree.messages()):
            tree.undo(rng.randrange(1, 3))
        elif kind < 0.8:
            tree.branch()
        elif kind < 0.9:
            ends = [f"#{number}" for number in tree.loose_ends()]
            tree.switch(rng.choice([*tree.branches, *ends]))
        else:
            turn = rng.choice(list(tree.turns.values()))
            tree.judge(turn, rng.choice([True, False]))
    return tree


# ---- the tree


def test_undo_takes_whole_exchanges_and_redo_gives_them_back() -> None:
    tree = talk("a", "1", "b", "2", "c", "3")
    assert tree.undo() == 1
    assert contents(tree) == ["a", "1", "b", "2"]
    assert tree.undo(5) == 2
    assert contents(tree) == []
    tree.redo()
    assert contents(tree) == ["a", "1", "b", "2"]
    tree.redo()
    assert contents(tree) == ["a", "1", "b", "2", "c", "3"]
    with pytest.raises(UsageError, match="nothing to redo"):
        tree.redo()


def test_saying_something_else_ends_what_could_be_redone() -> None:
    tree = talk("a", "1", "b", "2")
    tree.undo()
    tree.add(user("c"))
    with pytest.raises(UsageError, match="nothing to redo"):
        tree.redo()
    assert tree.loose_ends() == [4]
    tree.switch("#4")
    assert contents(tree) == ["a", "1", "b", "2"]


def test_nothing_can_be_undone_before_the_first_message() -> None:
    with pytest.raises(UsageError, match="nothing to undo"):
        Conversation().undo()


def test_a_branch_keeps_the_point_at_which_it_was_made() -> None:
    tree = talk("你好", "您好")
    assert tree.branch("计划") == "计划"
    tree.add(user("茶"))
    tree.switch("main")
    assert contents(tree) == ["你好", "您好"]
    tree.switch("计划")
    assert contents(tree) == ["你好", "您好", "茶"]


@pytest.mark.parametrize("name", ["main", "#3", "12", "two words", "a\x1b[2J", "x" * 61])
def test_a_name_that_cannot_be_a_branch_is_refused(name: str) -> None:
    tree = talk("a", "1")
    with pytest.raises(UsageError):
        tree.branch(name)
    assert list(tree.branches) == ["main"]


def test_an_unknown_branch_names_the_nearest() -> None:
    tree = talk("a", "1")
    tree.branch("plan-b")
    with pytest.raises(UsageError, match="did you mean plan-b"):
        tree.switch("plan-c")


def test_every_turn_is_on_a_branch_or_ends_in_a_loose_end(rng: random.Random) -> None:
    for _ in range(50):
        tree = grown(rng)
        tips = [*tree.branches.values(), *tree.loose_ends()]
        reached = {turn.id for tip in tips for turn in tree.path(tip)}
        assert reached == set(tree.turns)


# ---- as a file


def stored(tree: Conversation, system: str | None = None, **tags: str) -> Stored:
    return Stored(tree, system, tags)


def test_a_session_is_read_as_it_was_written(rng: random.Random) -> None:
    for _ in range(60):
        tree = grown(rng)
        system = rng.choice([None, "Be kind 友善"])
        tags = rng.choice([{}, {"style": "formal"}])
        opening = opening_text(system, tags)
        back = decode(encode(Stored(tree, system, tags), opening))
        assert (back.system, back.tags) == (system, tags)
        assert back.conversation.turns == tree.turns
        assert back.conversation.branches == tree.branches
        assert back.conversation.current == tree.current


def expected_lines(tree: Conversation) -> list[list[Message]]:
    """The slow twin: whole paths of branches up to a reply, none the beginning of another."""
    paths = []
    for tip in tree.branches.values():
        ids = [turn.id for turn in tree.path(tip)]
        while ids and tree.turns[ids[-1]].message.role != "assistant":
            ids.pop()
        paths.append(ids)
    kept = {
        tuple(p) for p in paths
        if p and not any(len(o) > len(p) and o[: len(p)] == p for o in paths)
    }  # fmt: skip
    return [[tree.turns[number].message for number in path] for path in sorted(kept)]


def test_training_reads_exactly_the_branches_and_learns_each_reply_once(
    rng: random.Random, tmp_path: Path
) -> None:
    for case in range(30):
        tree = grown(rng)
        path = tmp_path / f"{case}.jsonl"
        path.write_bytes(encode(stored(tree), None))
        wanted = [[(m.role, m.content) for m in line] for line in expected_lines(tree)]
        if not wanted:
            continue
        documents = list(read_path(path, path.name, ReadOptions()))
        found = [[(m.role, m.content) for m in d.messages] for d in documents]  # type: ignore[union-attr]
        assert sorted(found) == sorted(wanted)
        learned = [
            m.content for d in documents for m in d.messages  # type: ignore[union-attr]
            if m.role == "assistant" and m.weight
        ]  # fmt: skip
        whole = {
            turn.message.content
            for line in expected_lines(tree) for turn in tree.turns.values()
            if turn.message in line and turn.message.role == "assistant" and not turn.stopped
        }  # fmt: skip
        assert sorted(learned) == sorted(whole)
        assert all(not d.meta for d in documents), "nothing of the tree gets into a corpus"  # type: ignore[union-attr]


def test_preprocess_takes_a_folder_of_sessions(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    for number in range(12):
        tree = talk(f"What does tea {number} cost?", f"It costs {number} yuan, 卖{number}元。")
        tree.branch("other")
        tree.add(user(f"And paper {number}?"))
        tree.add(bot(f"Paper is {number + 1} yuan."))
        tree.switch("main")
        tree.add(user(f"谢谢{number}"))
        tree.add(bot(f"不客气{number}"))
        tree.undo()
        (folder / f"{number}.jsonl").write_bytes(encode(stored(tree, "Be brief"), "Be brief"))
    out = preprocess(
        PreprocessSettings(
            inputs=[str(folder)], out=str(tmp_path / "c"), vocab_size=300, workers=1,
            val_fraction=0.4, test_fraction=0.3, profile=False,
        )
    )  # fmt: skip
    corpus = open_corpus(out)
    assert sum(len(corpus.split(name)) for name in ("train", "val", "test")) == 12
    assert (out / "dropped.jsonl").read_bytes() == b""
    shown = [*_rows(out / "val.jsonl"), *_rows(out / "test.jsonl")]
    assert shown
    for row in shown:
        assert row["messages"][0] == {"role": "system", "content": "Be brief"}
        assert len(row["messages"]) == 5, "the branch that goes further holds the other"
        assert "不客气" not in json.dumps(row, ensure_ascii=False)
        assert set(row) == {"messages", "source"}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_turn_without_a_reply_is_kept_for_the_next_time() -> None:
    tree = talk("a", "1", "b")
    data = encode(stored(tree), None)
    (row,) = [json.loads(line) for line in data.splitlines()]
    assert [m["content"] for m in row["messages"]] == ["a", "1"]
    assert contents(decode(data).conversation) == ["a", "1", "b"]


def test_an_interrupted_reply_is_kept_and_not_learned() -> None:
    tree = Conversation([user("a")])
    tree.add(bot("hal"), stopped=True)
    data = encode(stored(tree), None)
    assert json.loads(data)["messages"][1]["weight"] == 0
    back = decode(data).conversation.path()[1]
    assert (back.message.weight, back.stopped) == (1, True)


def test_everything_undone_is_still_there() -> None:
    tree = talk("a", "1")
    tree.undo()
    back = decode(encode(stored(tree, "S"), "S")).conversation
    assert contents(back) == []
    assert back.turns == tree.turns


def hostile(change: Any) -> bytes:
    tree = talk("a", "1", "b", "2")
    tree.branch("x")
    tree.undo()
    row = json.loads(encode(stored(tree), None).splitlines()[0])
    change(row["messages"])
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0]["session"].update(current="none"),
        lambda m: m[0]["session"].update(branches={"x": 99}),
        lambda m: m[0]["session"].update(branches=[]),
        lambda m: m[0]["session"].pop("aside"),
        lambda m: m[1].update(parent=7),
        lambda m: m[1].update(parent=2),
        lambda m: m[0].update(parent=2),
        lambda m: m[1].update(id="two"),
        lambda m: m[1].update(role="robot"),
        lambda m: m[1].pop("content"),
        lambda m: m.clear(),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_a_sentence(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(hostile(change))
    with pytest.raises(UsageError, match="holds no conversation"):
        sessions.read(path)


def test_any_damage_is_a_sentence_or_a_conversation(rng: random.Random, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for _ in range(300):
        data = bytearray(encode(stored(grown(rng), "S"), "S"))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        path.write_bytes(data)
        try:
            back = sessions.read(path).conversation
        except UsageError:
            continue
        assert all(len(back.path(tip)) <= len(back.turns) for tip in back.branches.values())


# ---- the folder


def notices() -> tuple[list[str], Any]:
    told: list[str] = []
    return told, told.append


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    told, tell = notices()
    file = SessionFile(tmp_path / "state" / "sessions", "茶", tell=tell)
    file.write(encode(stored(talk("a", "1")), None))
    assert stat.S_IMODE(file.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert told == []


def test_a_session_that_is_open_elsewhere_gets_another_name(tmp_path: Path) -> None:
    told, tell = notices()
    first, second = (SessionFile(tmp_path, "茶", tell=tell) for _ in range(2))
    first.write(b"1\n")
    second.write(b"2\n")
    assert (first.name, second.name) == ("茶", "茶-2")
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"1\n", b"2\n")
    assert told == ["session 茶 is open in another chat; this one is 茶-2"]
    first.close()
    third = SessionFile(tmp_path, "茶", tell=tell)
    assert third.claim()
    second.close()
    third.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["茶-2.jsonl", "茶.jsonl"]


def test_new_sessions_never_take_a_name_that_is_there(tmp_path: Path) -> None:
    told, tell = notices()
    files = [SessionFile(tmp_path, tell=tell) for _ in range(5)]
    for number, file in enumerate(files):
        file.write(b"%d\n" % number)
        file.close()
    assert [file.path.read_bytes() for file in files] == [b"%d\n" % n for n in range(5)]
    assert told == []


@pytest.mark.parametrize("place", ["a file", "/proc/none", "/dev/null/x"])
def test_a_disk_that_refuses_is_told_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    told, tell = notices()
    file = SessionFile(tmp_path / place / "sessions", tell=tell)
    for _ in range(3):
        file.write(b"x\n")
    file.another().write(b"x\n")
    (line,) = told
    assert line.startswith("this conversation is not kept: cannot write")


@pytest.mark.parametrize("name", ["", " ", ".x", "-x", "a/b", "..", "a\\b", "a\nb", "x" * 81,
                                  "\x1b[2J", "茶" * 70])  # fmt: skip
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a session"):
        sessions.check_name(name)


def test_sessions_are_listed_the_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["c", "茶", "a"]):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(encode(stored(talk(f"about\n{name}", "1")), None))
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "broken.jsonl").write_bytes(b"{")
    (tmp_path / ".hidden.jsonl").write_bytes(b"{")
    os.utime(tmp_path / "broken.jsonl", (1, 1))
    assert sessions.names(tmp_path) == ["c", "茶", "a", "broken"]
    found = sessions.listed(tmp_path)
    assert [(e.name, e.messages, e.begins) for e in found] == [
        ("c", 2, "about c"), ("茶", 2, "about 茶"), ("a", 2, "about a"),
    ]  # fmt: skip
    assert sessions.names(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CHATBENCH_HOME": "/x"}, "/x"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/chatbench"),
        ({"XDG_STATE_HOME": "s", "HOME": "/h"}, "/h/.local/state/chatbench"),
        ({"HOME": "/h"}, "/h/.local/state/chatbench"),
        ({}, None),
        ({"HOME": "", "CHATBENCH_HOME": ""}, None),
    ],
)
def test_where_chats_are_kept(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str | None
) -> None:
    for name in ("CHATBENCH_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sessions.state_folder() == (None if folder is None else Path(folder))


def test_a_file_of_another_program_gives_its_last_conversation() -> None:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "茶")]
    data = b"\n".join(map(msgspec.json.encode, rows))
    assert contents(decode(b"not json\n" + data).conversation) == ["茶"]
