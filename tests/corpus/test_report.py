"""The report shows every number, obeys nothing in the data, and needs nothing but itself."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.corpus.reports import charts
from chatbench.corpus.reports.charts import Stream, count, cut, flow, histogram, share, width
from chatbench.corpus.reports.facts import (
    ClusterFacts,
    ContaminationFacts,
    CutWord,
    DuplicateFacts,
    FertilityFacts,
    LedgerFacts,
    LengthFacts,
    OverlapFacts,
    PersonalFacts,
    SourceFacts,
    SplitFacts,
    TokenizerFacts,
    facts_of,
    summarise_lengths,
)
from chatbench.corpus.reports.page import NARROW, WIDE
from chatbench.corpus.reports.report import CorpusFacts, render, write_report
from chatbench.errors import IntegrityError

HOSTILE = [
    "<script>alert(1)</script>", "a & b &amp; c", '"quoted" \'single\'', "</title></style>",
    "\x1b[31mred\x1b[0m", "\u202eright to left", "שלום עולם (1)", "小店的语料 <b>", "a\nb\tc\r",
    "x" * 10_000, "汉" * 10_000, "", " ", "\ud800", "\uffff\ufffe", "]]>", "{{ x }}", "https://a.b",
    "\u2028", "url(evil)", "%s {0}", "-->", "😀👩‍👧",
]  # fmt: skip
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Tags that are open, ids, attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(page: str) -> Balance:
    """The page parsed, after everything that must hold for any page."""
    page.encode()
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not {"script", "img", "link", "iframe", "object", "embed", "base"} & set(parser.tags)
    for name, value in parser.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "style", "srcset", "action")
        if name == "href":
            assert re.fullmatch("#[a-z]+", value or "")
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {f"#{i}" for i in ids} == {v for n, v in parser.attributes if n == "href"}
    assert ("lang", "en") in parser.attributes
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"url\(|@import|http|<", style)
    for drawing in re.findall("<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    # Nothing is drawn on the terminal or turned around by what the data holds.
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    return parser


def text_of(facts: CorpusFacts) -> str:
    return " ".join("".join(checked(render(facts)).words).split())


def full() -> CorpusFacts:
    """Something in every section, in both languages."""
    dropped = {"duplicate": 120, "near-duplicate": 77, "quality: too few words": 41, "language": 9}
    failed = {"bad JSON": 12, "undecodable bytes": 1}
    return CorpusFacts(
        name="小店 corpus",
        settings={"inputs": ["书.txt", "chats.jsonl"], "vocab_size": 4096, "tokenizer": None},
        sources=[SourceFacts("书.txt", 1_234_567, 800, "text · gb18030"),
                 SourceFacts("chats.jsonl", 99, 460, "JSON Lines: messages · utf-8")],
        ledger=LedgerFacts(1260, 1000, dropped, failed,
                           {"bad JSON": ["chats.jsonl:7: {broken"], "duplicate": ["书.txt:3: 茶"]}),
        changed={"mojibake": 31, "line ends": 12},
        languages={"en": 600, "zh": 390, "zh+latin": 10},
        lengths=summarise_lengths(np.arange(4, 1004)),
        characters=1_700_321,
        turns={2: 300, 4: 100, 30: 1},
        shapes={"messages": 401, "text": 599},
        roles={"user": 501, "assistant": 502},
        duplicates=DuplicateFacts("near", 120, 77, 0.8, {2: 30, 9: 1},
                                  [ClusterFacts(9, "亲，您好"), ClusterFacts(2, "Dear customer")]),
        splits={"train": SplitFacts(900, 450_000, 300_000), "val": SplitFacts(51, 25_000, 17_000),
                "test": SplitFacts(49, 24_000, 16_500)},
        contamination=ContaminationFacts("report", {"val": OverlapFacts(51, 3),
                                                    "test": OverlapFacts(49, 2)},
                                         0.25, ["xquad.json"], 17),
        pii=PersonalFacts("mask", {"email": 8, "resident id": 2}),
        tags={"style": {"formal": 30, "诗": 12}},
        tokenizer=TokenizerFacts(4096, "9f" * 32,
                                 [FertilityFacts("en", 4.1, 1.31, "word", 600),
                                  FertilityFacts("zh", 4.62, 0.71, "character", 390)],
                                 0.87, [CutWord("饕餮", 6, "zh"), CutWord("Thoughtful", 4, "en")]),
        collocations={"en": ["opening hours"], "zh": ["会员 卡"]},
        baseline={"val": 2.201, "test": 2.2146},
        fingerprint="ab" * 32,
    )  # fmt: skip


# ---- what is on the page


def test_every_section_shows_its_numbers() -> None:
    shown = text_of(full()).replace(charts.THIN_SPACE, " ")
    for expected in (
        "小店 corpus", "1 000", "of 1 260 read", "Texts and conversations, mostly in English and"
        " Chinese from 2 files.", "499 000", "1 700 321", "2.21", "87.0 %",
        "Of 1 260 records 1 000 were kept, 247 dropped on purpose, and 13 could not be read.",
        "duplicate", "the same text as a document that was kept", "书.txt:3: 茶", "failed to read",
        "bad JSON · 1 of 12", "chats.jsonl:7: {broken", "mojibake", "Chinese + Latin script",
        "Half of the documents have at most 504 tokens", "512 tokens", "1 024 tokens", "30 turns",
        "assistant", "messages", "120 exact copies were dropped; 77 near-duplicates were dropped",
        "similarity from 0.8", "31 groups of near-duplicates", "亲，您好", "sharing a 13-gram",
        "A sample of 25.0 %", "17 documents were dropped", "xquad.json",
        "10 items were replaced by placeholders.", "resident id", "style", "诗", "4.10", "0.71",
        "饕餮 · 6", "opening hours", "会员 卡", "1 234 567", "text · gb18030", "vocab_size",
        "ab" * 32, "9f" * 32,
    ):  # fmt: skip
        assert expected in shown, expected


def test_an_empty_corpus_says_so_and_leaves_out_what_it_does_not_know() -> None:
    shown = text_of(CorpusFacts())
    assert "Nothing was kept." in shown
    assert "No record was read." in shown
    for absent in ("Lengths", "Tokenizer", "Tags", "Sources", "Settings", "Languages"):
        assert absent not in shown


def test_what_was_not_asked_for_is_one_line() -> None:
    shown = text_of(CorpusFacts(ledger=LedgerFacts(1, 1)))
    assert "Not asked for (--dedup off)." in shown
    assert "not asked for (--contamination off)" in shown
    assert "Not asked for (--pii flag or --pii mask)." in shown
    shown = text_of(CorpusFacts(duplicates=DuplicateFacts("exact", 3), pii=PersonalFacts("flag")))
    assert "3 exact copies were dropped; near-duplicates were not asked for" in shown
    assert "None of the known kinds was found." in shown


def test_a_ledger_that_does_not_balance_is_told() -> None:
    assert "do not add up" in text_of(CorpusFacts(ledger=LedgerFacts(10, 3)))
    assert "do not add up" not in text_of(full())


def test_many_sources_are_folded_and_a_cut_list_says_so() -> None:
    sources = [SourceFacts(f"f{n}.txt", 10, 1) for n in range(40)]
    page = render(CorpusFacts(sources=sources, files=1234))
    assert "<details><summary><bdi>The first 40 files" in page
    assert f"1{charts.THIN_SPACE}234 files in all" in page
    assert "<details open><summary><bdi>2 files" in render(CorpusFacts(sources=sources[:2]))


# ---- any data


def hostile_facts(pick: random.Random) -> CorpusFacts:
    def name() -> str:
        return pick.choice(HOSTILE)

    def number() -> int:
        return pick.choice([0, 1, 2, 999, 10**6, 10**18])

    def counts() -> dict[str, int]:
        return {name(): number() for _ in range(pick.randrange(20))}

    read = number()
    lengths = np.array([pick.randrange(5000) for _ in range(pick.randrange(30))], np.int64)
    return CorpusFacts(
        name=name(), settings={name(): name(), "n": [name(), {"a": number()}]},
        sources=[SourceFacts(name(), number(), number(), name()) for _ in range(5)],
        ledger=LedgerFacts(read, pick.choice([read, 0, read // 2]), counts(), counts(),
                           {name(): [name(), name()] for _ in range(4)}),
        changed=counts(), languages=counts(), lengths=summarise_lengths(lengths),
        characters=number(), turns={number(): number() for _ in range(4)}, shapes=counts(),
        roles=counts(),
        duplicates=DuplicateFacts(name(), number(), number(), 0.5, {2: number()},
                                  [ClusterFacts(number(), name())]),
        splits={key: SplitFacts(number(), number(), number())
                for key in pick.choice([["train", "val", "test"], [name()], []])},
        contamination=ContaminationFacts(name(), {name(): OverlapFacts(number(), number())}, 0.3,
                                         [name()], number()),
        pii=PersonalFacts(name(), counts()), tags={name(): counts(), name(): counts()},
        tokenizer=TokenizerFacts(number(), name(), [FertilityFacts(name(), 1.5)], 0.2,
                                 [CutWord(name(), number(), name())]),
        collocations={name(): [name(), name()]}, baseline={name(): 1.5}, fingerprint=name(),
    )  # fmt: skip


def test_hostile_names_and_huge_numbers_stay_text(rng: random.Random) -> None:
    for _ in range(60):
        page = render(hostile_facts(rng))
        checked(page)
        assert "x" * 1000 not in page


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_reason_is_escaped_wherever_it_stands(name: str) -> None:
    facts = CorpusFacts(
        name=name, ledger=LedgerFacts(2, 1, {name: 1}, {}, {name: [name]}), tags={name: {name: 1}}
    )
    page = render(facts)
    checked(page)
    assert "<script" not in page
    assert "</title></style>" not in page


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.integers(0, 10**19))
def test_any_string_makes_a_sound_page(text: str, number: int) -> None:
    facts = CorpusFacts(
        name=text, ledger=LedgerFacts(number, number, {text: number}, {text: 1}, {text: [text]}),
        languages={text: number}, collocations={text: [text]}, settings={text: text},
    )  # fmt: skip
    checked(render(facts))


# ---- the same bytes


def test_facts_survive_json(rng: random.Random, tmp_path: Path) -> None:
    facts = full()
    data = msgspec.json.encode(facts)
    assert msgspec.json.decode(data, type=CorpusFacts) == facts
    (tmp_path / "facts.json").write_bytes(data)
    assert facts_of(tmp_path, {}) == facts
    assert render(facts_of(tmp_path, {})) == render(facts)


def test_the_order_of_dicts_of_reasons_does_not_matter(rng: random.Random) -> None:
    def shuffled(counts: dict[str, int]) -> dict[str, int]:
        return dict(rng.sample(sorted(counts.items()), len(counts)))

    facts = full()
    ledger = msgspec.structs.replace(
        facts.ledger, dropped=shuffled(facts.ledger.dropped), failed=shuffled(facts.ledger.failed)
    )
    mixed = msgspec.structs.replace(
        facts, ledger=ledger, languages=shuffled(facts.languages), changed=shuffled(facts.changed),
        settings=dict(reversed(facts.settings.items())),
    )  # fmt: skip
    assert render(mixed) == render(facts)


def test_the_page_is_the_same_in_another_process(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", full())
    (tmp_path / "facts.json").write_bytes(msgspec.json.encode(full()))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from chatbench.corpus.reports.facts import facts_of\n"
        "from chatbench.corpus.reports.report import write_report\n"
        "folder = Path(sys.argv[1])\nwrite_report(folder / 'again.html', facts_of(folder, {}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Shanghai"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_facts_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(b'{"ledger": 7}')
    with pytest.raises(IntegrityError, match=r"facts\.json cannot be read"):
        facts_of(tmp_path, {})
    (tmp_path / "facts.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
        facts_of(tmp_path, {"ledger": []})


# ---- lengths


def test_lengths_are_counted_in_bins_whose_edges_hold_the_powers_of_two(
    rng: random.Random,
) -> None:
    lengths = [int(2 ** rng.uniform(0, 14)) for _ in range(rng.randrange(1, 400))]
    found = summarise_lengths(np.array(lengths))
    slow = [sum(low <= n < high for n in lengths) for low, high in pairwise(found.edges)]
    assert found.counts == slow
    assert sum(found.counts) == len(lengths)
    assert found.counts[0]
    assert found.counts[-1]
    powers = {1 << n for n in range(20) if found.edges[0] <= 1 << n <= found.edges[-1]}
    assert powers <= set(found.edges)
    assert found.max == max(lengths)
    assert found.median == pytest.approx(float(np.median(lengths)))
    for limit, above in found.longer_than.items():
        assert above == sum(n > limit for n in lengths)


@pytest.mark.parametrize("lengths", [[0], [1], [0, 0, 3], [2**40], [512], [513]])
def test_extreme_lengths_have_a_histogram(lengths: list[int]) -> None:
    found = summarise_lengths(np.array(lengths))
    assert sum(found.counts) == len(lengths)
    ET.fromstring(histogram(found.edges, found.counts, {"median": found.median}, {}, NARROW))
    assert found.longer_than[512] == sum(n > 512 for n in lengths)


def test_no_documents_have_no_lengths() -> None:
    assert summarise_lengths(np.array([], np.int64)) == LengthFacts()


# ---- charts


def numbers(drawing: ET.Element, kind: str, attribute: str) -> list[float]:
    found = drawing.iter("{http://www.w3.org/2000/svg}rect")
    return [float(rect.get(attribute) or 0) for rect in found if rect.get("class") == kind]


@pytest.mark.parametrize("reasons", [0, 1, 5, 15])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_flow_keeps_labels_apart_and_in_the_picture(
    reasons: int, size: int, rng: random.Random
) -> None:
    left_out = [Stream(f"reason {n} 原因", rng.choice([1, 3, 5000]), "dropped")
                for n in range(reasons)]  # fmt: skip
    kept = rng.choice([1, 10, 10**6])
    read = kept + sum(s.amount for s in left_out)
    splits = [Stream("train", kept, "train"), Stream("val", 0, "val"), Stream("test", 0, "test")]
    drawing = ET.fromstring(flow(read, Stream("kept", kept, "kept"), splits, left_out, size))
    _, _, _, tall = map(float, (drawing.get("viewBox") or "").split())
    columns: dict[str, list[float]] = {}
    for label in drawing.iter("{http://www.w3.org/2000/svg}text"):
        columns.setdefault(label.get("x") or "", []).append(float(label.get("y") or 0))
    for heights in columns.values():
        ordered = sorted(heights)
        assert 10 < ordered[0] <= ordered[-1] < tall
        assert all(b - a > 16 for a, b in pairwise(ordered))
    shown = sum(len(list(t.itertext())) for t in drawing.iter("{http://www.w3.org/2000/svg}text"))
    assert shown >= reasons


def test_the_height_of_a_band_is_its_number() -> None:
    streams = [Stream("a", 300, "dropped"), Stream("b", 100, "dropped")]
    drawing = ET.fromstring(flow(1000, Stream("kept", 600, "kept"), [], streams, WIDE))
    (kept,) = numbers(drawing, "kept", "height")
    first, second = numbers(drawing, "dropped", "height")
    (read,) = numbers(drawing, "read", "height")
    assert kept == pytest.approx(2 * first)
    assert first == pytest.approx(3 * second, abs=0.2)
    assert read == pytest.approx(kept + first + second, abs=0.2)


def test_one_record_in_a_million_is_still_drawn_and_none_is_not() -> None:
    streams = [Stream("rare", 1, "failed"), Stream("never", 0, "dropped")]
    drawing = ET.fromstring(flow(10**6, Stream("kept", 10**6 - 1, "kept"), [], streams, WIDE))
    assert numbers(drawing, "failed", "height")[0] >= 1
    assert numbers(drawing, "dropped", "height") == []
    assert "<0.1" in "".join(drawing.itertext())


def test_many_reasons_are_gathered_in_the_flow_and_listed_below() -> None:
    dropped = {f"reason {n:02d}": 100 - n for n in range(30)}
    facts = CorpusFacts(ledger=LedgerFacts(sum(dropped.values()) + 5, 5, dropped))
    page = render(facts)
    checked(page)
    assert "19 more reasons" in page
    assert all(reason in page for reason in dropped)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_histogram_draws_its_counts(size: int, rng: random.Random) -> None:
    counts = [rng.randrange(50) for _ in range(12)] + [50]
    edges = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    drawing = ET.fromstring(histogram(edges, counts, {"median": 5.0, "95 %": 90.0}, {64: 9}, size))
    heights = numbers(drawing, "column", "height")
    assert len(heights) == len(counts)
    for high, amount in zip(heights, counts, strict=True):
        assert high == pytest.approx(150 * amount / 50, abs=0.1) or amount == 0 == high
    (limit,) = [p for p in drawing.iter() if p.get("class") == "limit"]
    left = float(re.findall(r"M([\d.]+)", limit.get("d") or "")[0])
    columns = numbers(drawing, "column", "x")
    assert left == pytest.approx(columns[11] - 1, abs=0.2)  # where the column from 64 begins


# ---- words and numbers


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1234567, "1 234 567"), (2.5, "2.50"), (3.0, "3")],
)
def test_numbers_have_thin_separators(number: float, shown: str) -> None:
    assert count(number) == shown.replace(" ", charts.THIN_SPACE)


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 10, "0 %"), (10, 10, "100 %"), (1, 10**6, "<0.1 %"), (10**6 - 1, 10**6, ">99.9 %"),
     (1, 3, "33.3 %"), (0, 0, "–")],
)  # fmt: skip
def test_shares_say_none_and_all_only_when_it_is_so(part: int, whole: int, shown: str) -> None:
    assert share(part, whole) == shown.replace(" ", charts.THIN_SPACE)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab汉字あ\u0301👩\u200d\n\x1b"), max_size=60), st.integers(4, 30))
def test_cut_text_fits_and_keeps_both_ends(text: str, cells: int) -> None:
    shown = cut(text, cells)
    assert width(shown) <= cells
    assert "\n" not in shown
    assert "\x1b" not in shown
    whole = charts.one_line(text)
    if shown != whole:
        head, _, tail = shown.partition("…")
        assert whole.startswith(head)
        assert whole.endswith(tail)
