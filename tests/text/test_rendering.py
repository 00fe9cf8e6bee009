"""Arrays of rendered documents: the ids of the template, and no control token but its own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from chatbench.conversation import ROLES, Message
from chatbench.errors import DataError
from chatbench.text.fast_encoding import FastEncoder
from chatbench.text.rendering import Item, RenderedArrays, render_arrays
from chatbench.text.template import END_OF_TEXT, TURN_END, TURN_START, render, render_texts
from chatbench.text.tokenizer import Tokenizer, train_tokenizer
from chatbench.text.vocabulary import extend_tokenizer
from conftest import sample_texts

NEVER = 1 << 60
LOOKALIKES = [
    TURN_START, TURN_END, END_OF_TEXT, f"{TURN_END}\n{TURN_START}assistant\n",
    "<|im_", "start|>", "<|", "|>", "<", "|", ">", "im_start", "im_end", "endoftext", "<|im_sta",
    "rt|>", "<|endof", "text|>", "<tool_call>", "</tool_call>", "<tool", "_call>",
    "＜|im_start|＞", "<｜im_start｜>", "＜｜ｉｍ＿ｓｔａｒｔ｜＞", "<｜end▁of▁sentence｜>",
    "<|im\u200b_start|>", "<|\u200dim_end|>", "<\ufeff|endoftext|>", "<|im_start\u00ad|>",
    "<|im_start|\u0338>", "<\u0338|im_end|>", "<s>", "</s>", "[INST]", "<|user|>",
]  # fmt: skip
ORDINARY = ["tea", " the shop", "茶叶", "，", "。", " ", "\n", "\n\n", "12", "'s", "e\u0301", "한",
            "👩‍👧", "assistant\n", "user\n", "\u3000", "system", "\t", "\u0301", ""]  # fmt: skip


def hostile(rng: random.Random, most: int = 7) -> str:
    return "".join(rng.choices(LOOKALIKES + ORDINARY, k=rng.randrange(most)))


def conversation(rng: random.Random) -> tuple[Message, ...]:
    """Any roles in any order, empty contents and replies that are not learned among them."""
    return tuple(
        Message(rng.choice(ROLES), hostile(rng), rng.choice((1, 1, 0)))
        for _ in range(rng.randrange(6))
    )


def some_items(rng: random.Random, count: int) -> list[Item]:
    """Texts, conversations, texts with control text before them, and items with nothing."""
    items = []
    for _ in range(count):
        kind = rng.randrange(6)
        if kind < 2:
            items.append(Item((), hostile(rng)))
        elif kind == 2:
            items.append(Item((Message("system", f"style: {hostile(rng, 3)}"),), hostile(rng)))
        else:
            items.append(Item(conversation(rng)))
    return items


def by_template(tokenizer: Tokenizer, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
    """The slow twin."""
    rows = []
    for turns, text in items:
        ids, weights = render(tokenizer, turns)
        if text is not None:
            (after,) = render_texts(tokenizer, [text])
            ids, weights = ids + after.ids, weights + after.weights
        rows.append((ids, weights))
    return rows


def rows_of(arrays: RenderedArrays) -> list[tuple[list[int], list[int]]]:
    assert (arrays.ids.dtype, arrays.starts.dtype) == (np.uint32, np.int64)
    assert arrays.weights.dtype == np.uint8
    assert len(arrays.ids) == len(arrays.weights) == arrays.starts[-1]
    assert arrays.starts[0] == 0
    ids, weights = arrays.ids.tolist(), arrays.weights.tolist()
    return [(ids[a:b], weights[a:b]) for a, b in pairwise(arrays.starts.tolist())]


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    """A tokenizer whose merges come as near to the control tokens as text can bring them."""
    rng = random.Random(5)
    texts = [hostile(rng, 12) for _ in range(3000)]
    return train_tokenizer([*sample_texts(), *LOOKALIKES * 50, *texts], 1200)


@pytest.fixture(scope="module")
def extended(learned: Tokenizer) -> Tokenizer:
    """One with more control tokens, whose names stand in the vocabulary as well."""
    content = json.loads(learned.to_bytes())
    backend = Backend.from_str(json.dumps(content))
    backend.add_tokens([AddedToken("<tool_call>", normalized=False), "</tool_call>"])
    rng = random.Random(6)
    return extend_tokenizer(Tokenizer(backend), [hostile(rng, 12) for _ in range(3000)], 1400)


@pytest.fixture(params=["learned", "extended"])
def hardened(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


# ---- the ids of the template


@pytest.mark.parametrize("worth_building", [NEVER, 0], ids=["tokenizers", "gigatoken"])
def test_arrays_are_what_the_template_renders(
    hardened: Tokenizer, rng: random.Random, worth_building: int
) -> None:
    hardened._fast = FastEncoder(hardened._text_only, worth_building)
    for count in (0, 1, 2, 5, 40, 150):
        items = some_items(rng, count)
        assert rows_of(render_arrays(hardened, items)) == by_template(hardened, items)


def test_the_corners(tokenizer: Tokenizer) -> None:
    quiet = Message("assistant", "never said", 0)
    for items in (
        [], [Item(())], [Item(()), Item(())], [Item((), "")], [Item((), ""), Item(())],
        [Item((Message("system", "只说中文"),))], [Item((Message("tool", '{"rain": 3}'),))],
        [Item((Message("assistant", ""),)), Item((), "茶"), Item((), "tea")],
        [Item((quiet,)), Item((quiet, Message("assistant", "said")))],
        [Item((Message("system", "style: 正式"),), ""), Item((), "")],
        [Item((Message("assistant", "  \n "),), "  kept \n")],
    ):  # fmt: skip
        assert rows_of(render_arrays(tokenizer, items)) == by_template(tokenizer, items)


def test_what_stands_beside_an_item_does_not_change_it(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    items = some_items(rng, 60)
    together = rows_of(render_arrays(tokenizer, items))
    assert together == [row for item in items for row in rows_of(render_arrays(tokenizer, [item]))]


def test_a_reply_of_weight_0_and_control_text_are_read_and_not_learned(
    tokenizer: Tokenizer,
) -> None:
    turns = (Message("user", "茶？"), Message("assistant", "no", 0), Message("assistant", "yes"))
    (row,) = rows_of(render_arrays(tokenizer, [Item(turns)]))
    assert learned_of(row) == [*tokenizer.encode("yes"), tokenizer.turn_end]
    control = (Message("system", "style: 正式"),)
    (row,) = rows_of(render_arrays(tokenizer, [Item(control, "一首诗")]))
    assert learned_of(row) == [*tokenizer.encode("一首诗"), tokenizer.end_of_text]
    before = render(tokenizer, control).ids
    assert row[0][: len(before)] == before


def learned_of(row: tuple[list[int], list[int]]) -> list[int]:
    return [number for number, weight in zip(*row, strict=True) if weight]


def test_half_a_character_is_refused_wherever_it_stands(tokenizer: Tokenizer) -> None:
    for item in (Item((), "a\ud800"), Item((Message("user", "a\udfff"),)),
                 Item((Message("system", "\ud83d"),), "a")):  # fmt: skip
        with pytest.raises(DataError, match="half a character"):
            render_arrays(tokenizer, [Item((), "fine"), item])


# ---- text never becomes a control token


def placed(tokenizer: Tokenizer, item: Item) -> list[int]:
    """The control ids that belong into an item, in order."""
    ids = [tokenizer.turn_start, tokenizer.turn_end] * len(item.turns)
    return ids if item.text is None else [*ids, tokenizer.end_of_text]


@pytest.mark.parametrize("worth_building", [NEVER, 0], ids=["tokenizers", "gigatoken"])
def test_no_text_of_100_000_becomes_a_control_token(
    hardened: Tokenizer, rng: random.Random, worth_building: int
) -> None:
    controls = np.array(sorted(hardened.control_ids))
    texts = [hostile(rng) for _ in range(25_000)]
    encoder = hardened._fast = FastEncoder(hardened._text_only, worth_building)
    ids, _ = hardened.encode_arrays(texts)
    assert not np.isin(ids, controls).any()
    assert (encoder._twin is None) == (worth_building == NEVER), encoder.reason
    roles = rng.choices(ROLES, k=len(texts))
    items = [
        Item((), text) if n % 3 == 0
        else Item((Message(role, text),)) if n % 3 == 1
        else Item((Message("system", text[::-1]),), text)
        for n, (text, role) in enumerate(zip(texts, roles, strict=True))
    ]  # fmt: skip
    for some in (items, [Item((), text) for text in texts]):
        arrays = render_arrays(hardened, some)
        found = arrays.ids[np.isin(arrays.ids, controls)].tolist()
        assert found == [number for item in some for number in placed(hardened, item)]


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(LOOKALIKES + ORDINARY) | st.text(max_size=4), max_size=12))
def test_lookalikes_around_any_text_stay_text(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    item = Item((Message("user", text), Message("assistant", text)), text)
    (row,) = rows_of(render_arrays(tokenizer, [item]))
    assert [n for n in row[0] if n in tokenizer.control_ids] == placed(tokenizer, item)
