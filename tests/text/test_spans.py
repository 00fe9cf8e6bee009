"""Entities in answers, counted as conlleval and seqeval count chunks."""

from __future__ import annotations

import json
import random

import pytest

from chatbench.text.measuring import Judged
from chatbench.text.metrics import measure_all
from chatbench.text.spans import json_spans, span_f1, tagged_spans

Tags = list[str]


def values(pairs: list[Judged]) -> dict[str, float]:
    return {measured.name: measured.value for measured in span_f1(pairs)}


def chunks(tags: Tags) -> set[tuple[str, int, int]]:
    """(type, first, last) of B- I- O tags, as conlleval reads them."""
    found: list[list[int | str]] = []
    before = "O"
    for place, tag in enumerate([*tags, "O"]):
        kind = tag[2:]
        begins = tag[0] == "B" or (tag[0] == "I" and (before == "O" or before[2:] != kind))
        if begins:
            found.append([kind, place, place])
        elif tag[0] == "I":
            found[-1][2] = place
        before = tag
    return {(str(kind), int(first), int(last)) for kind, first, last in found}


def conlleval(wanted: list[Tags], given: list[Tags]) -> tuple[float, float, float]:
    """Precision, recall and F1 in percent over all sentences."""
    pairs = [(chunks(w), chunks(g)) for w, g in zip(wanted, given, strict=True)]
    right = sum(len(w & g) for w, g in pairs)
    named, there = sum(len(g) for _, g in pairs), sum(len(w) for w, _ in pairs)
    precision, recall = (100 * right / n if n else 0.0 for n in (named, there))
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def answer(tags: Tags, words: list[str]) -> str:
    found: dict[str, list[str]] = {}
    for kind, first, last in sorted(chunks(tags)):
        found.setdefault(kind, []).append(" ".join(words[first : last + 1]))
    return json.dumps(found, ensure_ascii=False)


def test_answers_count_as_their_tags_do(rng: random.Random) -> None:
    """Words of a sentence are all different, so that a text says where it stands."""
    wanted, given, pairs = [], [], []
    for _ in range(40):
        words = [f"词{n}" for n in range(rng.randint(1, 9))]
        tags = [rng.choice(("O", "B-city", "I-city", "B-人", "I-人")) for _ in words]
        other = [t if rng.random() < 0.8 else "O" for t in tags]
        wanted.append(tags)
        given.append(other)
        pairs.append(Judged(answer(other, words), answer(tags, words)))
    precision, recall, f1 = conlleval(wanted, given)
    found = values(pairs)
    assert found["span_precision"] == pytest.approx(precision, abs=1e-9)
    assert found["span_recall"] == pytest.approx(recall, abs=1e-9)
    assert found["span_f1"] == pytest.approx(f1, abs=1e-9)


# What seqeval and conlleval print for these (micro average).
GOLDEN = [
    ([["O", "B-PER", "I-PER", "O"]], [["O", "B-PER", "I-PER", "O"]], (100.0, 100.0, 100.0)),
    ([["B-MISC", "I-MISC", "O", "B-PER", "I-PER", "O"]],
     [["B-MISC", "O", "O", "B-PER", "I-PER", "O"]], (50.0, 50.0, 50.0)),
    ([["B-PER", "O"], ["B-LOC", "B-LOC"]], [["B-LOC", "O"], ["B-LOC", "O"]],
     (50.0, 100 / 3, 40.0)),
    ([["O", "O"]], [["O", "B-PER"]], (0.0, 0.0, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "given", "figures"), GOLDEN)
def test_golden_rows(
    wanted: list[Tags], given: list[Tags], figures: tuple[float, float, float]
) -> None:
    words = [[f"w{n}" for n in range(len(tags))] for tags in wanted]
    pairs = [
        Judged(answer(g, said), answer(w, said))
        for w, g, said in zip(wanted, given, words, strict=True)
    ]
    assert conlleval(wanted, given) == pytest.approx(figures)
    found = values(pairs)
    names = ("span_precision", "span_recall", "span_f1")
    assert [found[name] for name in names] == pytest.approx(list(figures))


def test_a_type_and_every_repeat_count() -> None:
    wanted = '{"artist": ["Miles", "Miles"], "city": "北京"}'
    given = '{"artist": ["Miles"], "track": ["北京"]}'
    found = values([Judged(given, wanted)])
    assert found["span_precision"] == pytest.approx(50.0)
    assert found["span_recall"] == pytest.approx(100 / 3)
    assert found["span_f1"] == pytest.approx(40.0)


def test_tags_in_the_text() -> None:
    assert tagged_spans("play <artist>Miles  Davis</artist> in [北京](城市), <b>x</c>") == {
        ("artist", "Miles Davis"): 1, ("城市", "北京"): 1,
    }  # fmt: skip
    pairs = [
        Judged("play <artist>Miles</artist>", "play <artist>Miles</artist>"),
        Judged("去[北京](城市)", "去[上海](城市)"),
        Judged("nothing <a>here</a>", "nothing here"),
    ]
    found = values(pairs)
    assert found["span_precision"] == pytest.approx(100 / 3)
    assert found["span_recall"] == pytest.approx(50.0)


def test_an_answer_of_another_form_names_nothing() -> None:
    pairs = [Judged("no JSON", '{"a": ["x"]}'), Judged('{"a": [1]}', '{"a": ["y"]}')]
    (f1, *_) = span_f1(pairs)
    assert f1.value == 0
    assert f1.signature.endswith("unreadable:2")
    assert f1.n == 2


@pytest.mark.parametrize("text", ["[1]", '"a"', "{", '{"a": [["b"]]}', "[" * 100_000, "12"])
def test_what_is_no_object_of_lists(text: str) -> None:
    assert json_spans(text) is None


def test_plain_references_have_no_entities() -> None:
    pairs = [Judged("At nine.", "At 9:30."), Judged("{}", "a < b > c [x] (y)")]
    assert span_f1(pairs) == []
    assert "span_f1" not in {measured.name for measured in measure_all(pairs)}
    assert span_f1([]) == []
    some = [*pairs, Judged("{}", '{"a": ["b"]}')]
    assert span_f1(some) == []


def test_evaluate_prints_it_where_references_are_of_that_form() -> None:
    pairs = [Judged('{"a": ["b"]}', '{"a": ["b"]}')]
    assert "span_f1" in {measured.name for measured in measure_all(pairs)}
