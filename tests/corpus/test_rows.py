"""Rows of every shape become the same few values, in English and in Chinese."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from chatbench.conversation import Message
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.formats.rows import has_shape, parse_map, parse_row, to_document
from chatbench.corpus.formats.turns import read_turns
from chatbench.errors import UsageError

ASK, TOLD = Message("user", "有茶吗？"), Message("assistant", "有的。")
PAIR = (ASK, TOLD)
BAD = Message("assistant", "没有。")
CHAT = [{"role": "user", "content": "有茶吗？"}, {"role": "assistant", "content": "有的。"}]
USER, REPLY, WORSE = CHAT[0], CHAT[1], {"role": "assistant", "content": "没有。"}
HUMAN, GPT = {"from": "human", "value": "有茶吗？"}, {"from": "gpt", "value": "有的。"}


def document(row: dict[str, Any], **mapping: str) -> Document:
    return to_document(row, "f:1", mapping)


def system(text: str) -> Message:
    return Message("system", text)


PLAIN = [
    ({"messages": CHAT}, PAIR, "messages"),
    ({"Messages": CHAT}, PAIR, "messages"),
    ({"conversations": [HUMAN, GPT]}, PAIR, "sharegpt"),
    ({"conversations": CHAT}, PAIR, "messages"),
    ({"conversation": [HUMAN, {**GPT, "from": "chatgpt"}]}, PAIR, "sharegpt"),
    ({"conversations": [HUMAN, {**GPT, "from": "bard"}]}, PAIR, "sharegpt"),
    ({"system": "Be kind.", "conversations": [HUMAN, GPT]}, (system("Be kind."), *PAIR),
     "sharegpt"),
    ({"conversations": [{"from": "system", "value": "Be kind."}, HUMAN, GPT]},
     (system("Be kind."), *PAIR), "sharegpt"),
    ({"messages": [{"message": "有茶吗？"}, {"message": "有的。", "attrs": []}]}, PAIR, "messages"),
    ({"messages": [{"text": "有茶吗？"}, {"text": "有的。"}]}, PAIR, "messages"),
    ({"messages": [{"content": "有茶吗？", "role": "usr"}, {"content": "有的。", "role": "sys"}]},
     PAIR, "messages"),
    ({"turns": [{"speaker": "USER", "utterance": "有茶吗？"},
                {"speaker": "SYSTEM", "utterance": "有的。"}]}, PAIR, "messages"),
    ({"dialogue": ["有茶吗？", "有的。"]}, PAIR, "messages"),
    ({"instruction": "有茶吗？", "input": "", "output": "有的。"}, PAIR, "alpaca"),
    ({"instruction": "有茶", "input": "吗？", "output": "有的。"},
     (Message("user", "有茶\n\n吗？"), TOLD), "alpaca"),
    ({"instruction": "有茶吗？", "output": "有的。", "system": "Be kind.",
      "history": [["Hi", "你好"]]},
     (system("Be kind."), Message("user", "Hi"), Message("assistant", "你好"), *PAIR), "alpaca"),
    ({"instruction": "有茶吗？", "context": "", "response": "有的。"}, PAIR, "prompt"),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, PAIR, "prompt"),
    ({"question": "有茶吗？", "answer": ["有的。", "没有。"]}, PAIR, "prompt"),
    ({"question": "有茶吗？", "answers": {"text": ["有的。"], "answer_start": [0]}}, PAIR,
     "prompt"),
    ({"context": "茶在架子上。", "question": "有茶吗？", "answers": [{"text": "有的。"}]},
     (Message("user", "茶在架子上。\n\n有茶吗？"), TOLD), "prompt"),
    ({"instruction": "有茶", "instances": [{"input": "吗？", "output": "有的。"}]},
     (Message("user", "有茶\n\n吗？"), TOLD), "alpaca"),
    ({"dialogue": "有茶吗？", "summary": "有的。"}, PAIR, "prompt"),
    ({"source": ["有茶", "吗？"], "target": ["有的。", "有。"]},
     (Message("user", "有茶\n吗？"), TOLD), "prompt"),
    ({"question": "6 × 7?", "answer": 42}, (Message("user", "6 × 7?"), Message("assistant", "42")),
     "prompt"),
    ({"context": ["Hi", "你好", "有茶吗？"], "response": "有的。"},
     (Message("user", "Hi"), Message("assistant", "你好"), *PAIR), "prompt"),
    ({"context": "有茶吗？", "context/0": "你好", "context/1": "Hi", "response": "有的。"},
     (Message("user", "Hi"), Message("assistant", "你好"), *PAIR), "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages", "shape"), PLAIN)
def test_dialogues_of_all_kinds_become_messages(
    row: dict[str, Any], messages: tuple[Message, ...], shape: str
) -> None:
    found = document({**row, "facts": ["x"]})
    assert (found.messages, found.shape) == (messages, shape)
    assert found.meta == {"facts": ["x"]}
    assert (found.text, found.rejected, found.source) == (None, None, "f:1")


PAIR_KEYS = (
    "prompt completion,prompt response,query response,question answer,q a,问题 答案,问 答,"
    "input output,input target,instruction response,context response,Question Answer,"
    "problem solution,question solution,prompt canonical_solution,article highlights,"
    "article summary,document summary,dialog summary,source target"
)


@pytest.mark.parametrize("keys", [pair.split() for pair in PAIR_KEYS.split(",")], ids="-".join)
def test_a_prompt_and_its_reply_have_many_names(keys: list[str]) -> None:
    found = document({keys[0]: "有茶吗？", keys[1]: "有的。", "n": 1})
    assert (found.messages, found.shape, found.meta) == (PAIR, "prompt", {"n": 1})


@pytest.mark.parametrize("key", ["text", "content", "body", "document", "TEXT", "文本", "内容"])
def test_text_has_many_names(key: str) -> None:
    found = document({key: "Tea 茶", "id": 3})
    assert (found.text, found.shape, found.meta) == ("Tea 茶", "text", {"id": 3})


@pytest.mark.parametrize("text", ["text", "sentence", "review", "query", "utterance", "内容", "v2"])
@pytest.mark.parametrize("label", ["label", "category", "intent", "sentiment", "标签", "v1"])
@pytest.mark.parametrize(
    ("value", "written"), [("好", "好"), (3, "3"), (1.0, "1"), (0.5, "0.5"), (True, "true")]
)
def test_a_text_and_its_label(text: str, label: str, value: Any, written: str) -> None:
    found = document({text: "很好喝", label: value, "n": 1})
    assert found.messages == (Message("user", "很好喝"), Message("assistant", written))
    assert found.shape == "labelled"
    assert found.meta["label"] == written
    assert found.meta["n"] == 1


def test_a_text_whose_label_is_no_label_stays_a_text() -> None:
    for value in (None, ["a"], {"x": 1}, ""):
        found = document({"text": "茶", "label": value})
        assert (found.text, found.meta) == ("茶", {"label": value})


# ---- OpenAI's messages


def test_parts_tools_calls_and_weights_of_openai_messages() -> None:
    call = {"id": "1", "type": "function",
            "function": {"name": "price", "arguments": '{"thing": "茶"}'}}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "price"}}]
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "茶多少钱？"}, "Please."]},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call, call]},
            {"role": "function", "name": "price", "content": ""},
            {"role": "assistant", "content": "两元。", "weight": 1},
        ],
        "tools": tools,
        "parallel_tool_calls": False,
    }
    block = '<tool_call>\n{"name":"price","arguments":{"thing":"茶"}}\n</tool_call>'
    found = document(row)
    assert found.messages == (
        system('Be brief.\n\nTools:\n{"type":"function","function":{"name":"price"}}'),
        Message("user", "茶多少钱？\nPlease."),
        Message("assistant", block, 0),
        Message("tool", "2"),
        Message("assistant", f"I look.\n{block}\n{block}"),
        Message("tool", ""),
        Message("assistant", "两元。"),
    )
    assert found.meta == {"parallel_tool_calls": False}
    json.loads(block.split("\n")[1])


def test_sharegpt_tools_are_strings_and_calls_are_turns() -> None:
    found = document({
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "茶"}}'},
            {"from": "observation", "value": "[]"},
            GPT,
        ],
        "system": "",
        "tools": '[{"name": "look"}]',
    })  # fmt: skip
    assert found.messages == (
        system('Tools:\n{"name":"look"}'),
        ASK,
        Message("assistant", '<tool_call>\n{"name":"look","arguments":{"at":"茶"}}\n</tool_call>'),
        Message("tool", "[]"),
        TOLD,
    )
    assert document({"conversations": [HUMAN, GPT], "tools": "[]"}).messages == PAIR


def test_the_quick_way_through_plain_messages_is_the_slow_way(rng: random.Random) -> None:
    roles = ("system", "user", "assistant", "tool")
    for _ in range(200):
        raw = [
            {"role": rng.choice(roles), "content": rng.choice(("", "茶", "tea\n"))}
            for _ in range(rng.randrange(1, 6))
        ]
        slow = read_turns([{**turn, "name": "x"} for turn in raw])
        assert read_turns(raw) == slow == tuple(Message(t["role"], t["content"]) for t in raw)  # type: ignore[arg-type]


# ---- what to prefer

PREFERENCES = [
    {"prompt": "有茶吗？", "chosen": "有的。", "rejected": "没有。"},
    {"question": "有茶吗？", "chosen": "有的。", "rejected": "没有。"},
    {"instruction": "有茶吗？", "input": "", "chosen": "有的。", "rejected": "没有。"},
    {"prompt": [USER], "chosen": [REPLY], "rejected": [WORSE]},
    {"prompt": "有茶吗？", "chosen": CHAT, "rejected": [USER, WORSE]},
    {"chosen": CHAT, "rejected": [USER, WORSE]},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "没有。"}},
    {"input": {"messages": [USER]}, "preferred_output": [REPLY], "non_preferred_output": [WORSE]},
    {"chosen_messages": CHAT, "rejected_messages": [USER, WORSE]},
    {"chosen": "\n\nHuman: 有茶吗？\n\nAssistant: 有的。",
     "rejected": "\n\nHuman: 有茶吗？\n\nAssistant: 没有。"},
    {"messages": CHAT, "rejected": [USER, WORSE]},
]  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES)
def test_preference_pairs_of_all_kinds_are_two_conversations(row: dict[str, Any]) -> None:
    found = document({**row, "score": 1})
    assert found.messages == PAIR
    assert found.rejected == (ASK, BAD)
    assert (found.shape, found.meta) == ("preference", {"score": 1})


def test_chosen_and_rejected_without_a_shared_prompt_are_no_pair() -> None:
    other = [{"role": "user", "content": "几点开门？"}, WORSE]
    for row in (
        {"chosen": CHAT, "rejected": other},
        {"chosen": "有的。", "rejected": "没有。"},
        {"messages": CHAT, "rejected": other},
    ):
        with pytest.raises(ValueError, match="share a prompt"):
            document(row)
    with pytest.raises(ValueError, match="no reply after the prompt"):
        document({"prompt": "有茶吗？", "chosen": [USER], "rejected": CHAT})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "有茶吗？", "completion": "有的。", "label": ...},
        {"prompt": [USER], "completion": [REPLY], "label": ...},
        {"conversations": [HUMAN, GPT], "kto_tag": ...},
        {"messages": CHAT, "label": ...},
    ],
)
def test_replies_that_are_only_known_to_be_good_or_bad(row: dict[str, Any]) -> None:
    verdict = next(key for key, value in row.items() if value is ...)
    good, bad = (document({**row, verdict: value}) for value in (True, False))
    assert (good.messages, good.rejected, good.shape) == (PAIR, None, "unpaired")
    assert bad.messages == (ASK, Message("assistant", "有的。", 0))
    assert (bad.rejected, bad.shape, bad.meta) == (PAIR, "unpaired", {})


def test_a_bad_conversation_has_to_end_with_a_reply() -> None:
    with pytest.raises(ValueError, match="does not end with a reply"):
        document({"messages": [USER], "label": False})


# ---- --map


def test_named_columns_win_over_guesses() -> None:
    row = {"text": "no", "frage": "有茶吗？", "antwort": "有的。", "system": "Be kind.", "n": 1}
    found = document(row, user="frage", assistant="antwort")
    assert found.messages == (system("Be kind."), *PAIR)
    assert found.meta == {"n": 1}
    assert document(row, text="frage").text == "有茶吗？"
    assert document({"a": "很好喝", "b": 1, "c": 2}, text="a", label="b").shape == "labelled"
    assert document({"a": CHAT, "messages": "x"}, messages="a").messages == PAIR
    assert document({"a": "有茶吗？", "b": "有的。", "c": "没有。"}, prompt="a", chosen="b",
                    rejected="c").rejected == (ASK, BAD)  # fmt: skip
    assert document({"question": "有茶吗？", "b": "有的。"}, assistant="b").messages == PAIR


def test_a_mapped_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"column frage of --map user=frage .* keys text, n"):
        document({"text": "a", "n": 1}, user="frage")


@pytest.mark.parametrize("sender", ["Anna", "Anna, Ben", "Anna,"])
def test_a_sender_of_chat_exports_is_no_column_that_rows_lack(sender: str) -> None:
    assert document({"问题": "有茶吗？", "答案": "有的。"}, assistant=sender).messages == PAIR
    assert document({"text": "有茶吗？", "": 1}, assistant=sender).text == "有茶吗？"
    assert has_shape(["question", "answer"], {"assistant": sender})
    assert not has_shape(["a", "b"], {"assistant": sender})
    with pytest.raises(ValueError, match=f"column {sender} of --map assistant={sender} is not"):
        document({"a": "有茶吗？", "b": "有的。"}, assistant=sender)


@pytest.mark.parametrize(
    "mapping",
    [{"assistant": "Answer"}, {"assistant": "Anna,ANSWER"}, {"user": "Anna"},
     {"assistant": "Anna", "user": "question"}],
    ids=str,
)  # fmt: skip
def test_a_map_that_means_columns_is_never_passed_over(mapping: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is not among the keys question, answer"):
        document({"question": "有茶吗？", "answer": "有的。"}, **mapping)


def test_the_map_of_the_command_line() -> None:
    assert parse_map(["user = Frage", "assistant=a=b"]) == {"user": "Frage", "assistant": "a=b"}
    assert parse_map([]) == {}
    for entry, hint in (
        ("user", "PART=COLUMN"),
        ("user=", "PART=COLUMN"),
        ("usr=a", "no part usr"),
    ):
        with pytest.raises(UsageError, match=hint):
            parse_map([entry])
    with pytest.raises(UsageError, match="did you mean user"):
        parse_map(["usr=a"])
    with pytest.raises(UsageError, match="twice"):
        parse_map(["user=a", "user=b"])


def test_shapes_can_be_asked_for() -> None:
    assert has_shape(["Question", "Answer"])
    assert has_shape(["a", "b"], {"user": "a", "assistant": "b"})
    assert not has_shape(["a", "b"])
    assert not has_shape(["text"], {"user": "a"})


# ---- rows of a file


def test_a_written_row_reads_back_as_the_same_document() -> None:
    rows: list[dict[str, Any]] = [
        {"text": "茶", "n": 1},
        {"messages": CHAT, "label": "x"},
        {"text": "好", "label": True},
        {"prompt": "a", "completion": "b", "label": False, "n": 1},
        *PREFERENCES,
    ]
    for row in rows:
        before = document(row)
        line = msgspec.json.encode(before.as_row())
        after = parse_row(line, "val.jsonl:1")
        assert isinstance(after, Document)
        assert after.digest() == before.digest()
        assert (after.text, after.messages, after.rejected) == (
            before.text, before.messages, before.rejected
        )  # fmt: skip
        assert after.meta == before.meta


def test_keys_of_the_corpus_format_never_come_from_meta() -> None:
    found = document({"question": "q", "answer": "a", "source": "x", "text": "t", "rejected": "r"})
    assert found.meta == {}
    assert found.as_row()["source"] == "f:1"


BAD_ROWS = [
    (b'{"text": NaN}', "bad JSON", ""),
    (b'{"text": "a", "n": 1e999}', "bad JSON", ""),
    (b'{"text": "a", "n": ' + b"1" * 4301 + b"}", "bad JSON", ""),
    (b'{"text": "a"} {"text": "b"}', "bad JSON", "trailing"),
    (b'{"text": "a",}', "bad JSON", ""),
    (b'{"text": "\\ud800"}', "bad JSON", ""),
    (b'{"text": "\xff\xfe"}', "bad JSON", ""),
    (b'{"text": "a\x00b"}', "bad JSON", ""),
    (b'{"a":' * 100_000, "bad JSON", ""),
    (b"[" * 100_000 + b"]" * 100_000, "bad JSON", ""),
    (b"[1, 2]", "not an object", "list"),
    (b'"text"', "not an object", "str"),
    (b"null", "not an object", "NoneType"),
    (b"{}", "bad row", "(none)"),
    (b'{"txt": "a", "n": 1}', "bad row", "keys txt, n hold neither"),
    (b'{"instruction": "a", "instances": []}', "bad row", "instances has 0 entries"),
    (b'{"instruction": "a", "instances": [{"x": 1}]}', "bad row", "instances has no output"),
    (b'{"prompt": "a"}', "bad row", "--map user=COLUMN"),
    (b'{"text": 5}', "bad row", "text is not a string"),
    (b'{"prompt": "a", "completion": null}', "bad row", "completion is not a string"),
    (b'{"prompt": "a", "completion": []}', "bad row", "completion is not a string"),
    (b'{"question": ["a"], "answer": "b"}', "bad row", "question is not a string"),
    (b'{"instruction": "a", "output": "b", "history": "c"}', "bad row", "history is not"),
    (b'{"prompt": "a", "completion": "b", "system": 1}', "bad row", "system is not a string"),
    (b'{"messages": "hi"}', "bad row", "messages is not a list"),
    (b'{"messages": []}', "bad row", "messages is not a list with entries"),
    (b'{"messages": [1]}', "bad row", "message 1 is not an object"),
    (b'{"messages": [{"role": "narrator", "content": "x"}]}', "bad row", "role 'narrator'"),
    (b'{"messages": [{"role": "user", "content": 1}]}', "bad row", "no text in content"),
    (b'{"messages": [{"role": "user", "content": null}]}', "bad row", "no text in content"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "bad row",
     "image_url"),
    (b'{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}', "bad row", "weight 2"),
    (b'{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}', "bad row",
     "message 1 has weight 0.5; only 0 (read, not learned) and 1"),
    (b'{"conversations": [{"from": "gpt", "value": "a", "loss_weight": 0.25}]}', "bad row",
     "weight 0.25; only 0"),
    (b'{"messages": [{"role": "assistant", "content": "a", "weight": "1"}]}', "bad row", "only 0"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_ROWS, ids=lambda v: repr(v[:40]))
def test_a_bad_row_says_what_is_wrong_and_keeps_the_original(
    line: bytes, reason: str, detail: str
) -> None:
    failure = parse_row(line + b"\r\n", "file:1")
    assert isinstance(failure, Failure)
    assert (failure.source, failure.reason) == ("file:1", reason)
    assert detail in failure.detail
    assert failure.original.encode() == line or "\\x" in failure.original
    msgspec.json.encode(failure)


def test_of_equal_keys_the_last_one_counts() -> None:
    found = parse_row('{"text": "a", "text": "茶"}'.encode(), "f:1")
    assert isinstance(found, Document)
    assert found.text == "茶"


def test_any_values_give_a_document_or_a_reason(rng: random.Random) -> None:
    """Every known key with any value: never another exception than ValueError."""
    keys = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "label",
            "text", "input", "output", "instruction", "history", "system", "tools", "context",
            "response", "question", "answers", "turns", "kto_tag", "preferred_output")  # fmt: skip
    turn = {"role": "user", "content": "茶", "weight": 1, "tool_calls": [{}], "from": "gpt"}

    def value(depth: int = 0) -> Any:
        kind = rng.randrange(9)
        if kind < 2 and depth < 3:
            return [value(depth + 1) for _ in range(rng.randrange(3))]
        if kind < 5 and depth < 3:
            chosen = rng.sample(list(turn), rng.randrange(len(turn)))
            return {k: turn[k] if rng.random() < 0.7 else value(depth + 1) for k in chosen}
        return rng.choice([None, True, False, 0, 1, 2.5, "", "茶", '{"name": 1}', "user"])

    documents = 0
    for _ in range(4000):
        row = {key: value() for key in rng.sample(keys, rng.randrange(1, 6))}
        record = parse_row(msgspec.json.encode(row), "f:1")
        msgspec.json.encode(record)
        documents += isinstance(record, Document)
    assert documents


@pytest.mark.parametrize("beside", [{"text": "茶"}, {"messages": CHAT}, {"content": "茶"}])
def test_where_a_written_document_came_from_is_not_a_prompt(beside: dict[str, Any]) -> None:
    found = document({**beside, "source": "a.txt:1", "target": "好"})
    assert "a.txt:1" not in found.joined()


def test_what_to_do_about_unknown_columns_comes_before_the_long_list_of_them() -> None:
    keys = {f"column {n}": "x" for n in range(40)}
    with pytest.raises(ValueError, match=r"^name its columns, such as --map user=COLUMN"):
        document(keys)
