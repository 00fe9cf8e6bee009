"""Damage is undone, what an author may have meant stays, and clean text is not even copied."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbench.conversation import Message, exchange
from chatbench.corpus.cleaning import repair as repairs
from chatbench.corpus.cleaning.repair import mended, ready, repair
from chatbench.corpus.document import Document
from chatbench.errors import UsageError
from conftest import CHINESE, ENGLISH, SHARED_DATA, sample_texts

pytest.importorskip("ftfy")

FAMILY = "👩‍👧 🏳️‍🌈 ❤️‍🔥 👩🏽‍🚀"
PERSIAN = "می‌خواهم"
SINHALA = "ශ්‍රී ලංකා"
SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
# How much of a mixed text's variants comes back whole.
WRONG = (
    ("latin-1", 1), ("sloppy-windows-1252", 1), ("sloppy-windows-1251", 0.8), ("mac-roman", 1),
    ("cp437", 1),
)  # fmt: skip
# What the rules of ftfy.badness look at, and what the other steps do.
ALPHABET = (
    "".join(chr(c) for c in (*range(0x80, 0x180), *range(0x391, 0x3CA), *range(0x401, 0x460)))
    + "aZ 1.\n\r\t\x1b[m\x00\x85“”‘’„‚‹›…–—€™•†‡ˆ˜√≈∞≤≥╨│▓█½²°×\ufffd\u200b\u200c\u200d\ufeff\xad"
    + ("\u2028\u202e\U000e0067\U000e007f🏴👩👧茶は\u0301\u0308\u0323مක්\ud83d\ude00\u3000\u2126")
)
DIRTY = st.text(st.sampled_from(ALPHABET), max_size=24)


def one(text: str) -> str:
    return mended(text)[0]


# ---- each kind of fault


@pytest.mark.parametrize(
    ("text", "expected", "kinds"),
    [
        ("schÃ¶n", "schön", ["mojibake"]),
        ("èŒ¶å\x8f¶å¾ˆå¥½", "茶叶很好", ["mojibake"]),
        ("He said \x93no\x94.", "He said “no”.", ["mojibake"]),
        ("a\ud800b茶\udfff", "ab茶", ["mojibake"]),
        ("\ud83d\ude00", "😀", ["mojibake"]),
        ("te\x00a\x07 茶\x7f\x81", "tea 茶", ["control characters"]),
        ("\x1b[1;31mred\x1b[0m", "red", ["control characters"]),
        ("茶\u200b叶\ufeff", "茶叶", ["invisible characters"]),
        ("tea\xadpot \u202etea\u202c", "teapot tea", ["invisible characters"]),
        ("hi\U000e0068\U000e0069", "hi", ["invisible characters"]),
        ("a\u200cb 茶\u200d叶", "ab 茶叶", ["invisible characters"]),
        ("a\r\nb\rc\u2028d\u2029e\x85f\fg", "a\nb\nc\nd\ne\nf\ng", ["line ends"]),
        ("cafe\u0301 \u212b 豈", "café Å 豈", ["composition"]),
        ("a" + "\u0323" * 99, "ạ" + "\u0323" * 29, ["composition"]),
        ("茶" + "\U0001d165" * 99, "茶" + "\U0001d165" * 30, ["composition"]),
        ("a\n\n\n\n\nb", "a\n\n\nb", ["white space"]),
        ("\n\n\na", "\n\na", ["white space"]),
        ("a \t\n茶\u3000\nb\xa0", "a\n茶\nb", ["white space"]),
        ("a\n \n\t\n \n \nb", "a\n\n\nb", ["white space"]),
        ("\ufeffa \r\n", "a\n", ["invisible characters", "line ends", "white space"]),
    ],
)  # fmt: skip
def test_a_fault_is_mended_and_named(text: str, expected: str, kinds: list[str]) -> None:
    assert mended(text) == (expected, kinds)


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH, CHINESE, FAMILY, PERSIAN, SINHALA, SCOTLAND, "", "a\n\n\nb", "\tindented",
        "“curly” ‘quotes’ … — „deutsch“ «français»", "ﬁne &amp; &lt;b&gt;", "ＡＢＣ，１２３　茶",
        "Ärger, Größe, Straßenfuß, cœur, déjà vu, ¿señor?, naïve", "Это по-русски: «Мир»",
        "ВГР «С» Οι Έλληνες", "10 °C ± 2 × 3 µm², €5", "日本語のテキスト・ガール", "한국어 텍스트",
        "a\xa0b 茶\u3000叶", "葛\U000e0100", "Ãris",
    ],
)  # fmt: skip
def test_what_may_be_meant_stays(text: str) -> None:
    assert mended(text) == (text, [])


def test_only_the_bad_line_is_touched() -> None:
    # As a whole the text fits no single-byte encoding.
    text = "茶 “Ärger”\nschÃ¶n Ã\xa0 la carte\nÄÖ é"
    assert one(text) == "茶 “Ärger”\nschön à la carte\nÄÖ é"


def test_windows_ellipsis_is_told_from_a_line_end() -> None:
    assert one("the end\x85 of it") == "the end\n of it"
    assert one("itâ\x80\x99s the end\x85") == "it’s the end…"


@pytest.mark.parametrize(("wrong", "share"), WRONG)
def test_text_decoded_wrongly_comes_back(wrong: str, share: float) -> None:
    import ftfy  # registers the sloppy encodings

    assert ftfy
    words = ["Größe", "café", "naïve", "茶叶", "雨伞", "Ærø", "señor", "Привет", "“quoted”", "…"]
    texts = [" ".join(four) for four in combinations(words, 4)]
    back = [one(text.encode().decode(wrong)) == text for text in texts]
    assert sum(back) >= share * len(texts)


# ---- documents


def test_clean_documents_are_the_same_objects() -> None:
    clean = [Document("t", text=text) for text in [*sample_texts(), FAMILY, PERSIAN, ""]]
    clean.append(Document("c", messages=exchange("茶?", "Yes.", "Be kind — “always”.")))
    done, counts = repair(clean)
    assert all(after is before for after, before in zip(done, clean, strict=True))
    assert not counts


def test_every_text_of_a_conversation_is_mended_and_counted_once() -> None:
    chat = Document(
        "c:1",
        messages=(Message("user", "schÃ¶n\r\n"), Message("assistant", "Ã¼ber", weight=0)),
        rejected=(Message("user", "schÃ¶n\r\n"), Message("assistant", "\u200bno")),
        meta={"id": 3},
    )
    ((done,), counts) = repair([chat])
    assert isinstance(done, Document)
    assert done.messages == (Message("user", "schön\n"), Message("assistant", "über", weight=0))
    assert done.rejected == (Message("user", "schön\n"), Message("assistant", "no"))
    assert done.meta == {"id": 3}
    assert counts == {"mojibake": 1, "line ends": 1, "invisible characters": 1}


def test_counts_count_documents_and_batches_have_no_borders(rng: random.Random) -> None:
    texts = ["a\r\nb\r\n", "c\r", "schÃ¶n \n", "茶\u200b \n", "ok"] * 5
    rng.shuffle(texts)
    documents = [Document(str(n), text=text) for n, text in enumerate(texts)]
    done, counts = repair(documents)
    assert counts == {
        "line ends": 10, "mojibake": 5, "white space": 10, "invisible characters": 5,
    }  # fmt: skip
    cut = rng.randrange(len(documents))
    left, right = repair(documents[:cut]), repair(documents[cut:])
    assert (left[0] + right[0], left[1] + right[1]) == (done, counts)
    assert repair([]) == ([], {})


def test_without_ftfy_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs ftfy; pip install"):
        ready()


# ---- properties


@settings(max_examples=400, deadline=None)
@given(DIRTY | st.text(max_size=24))
@example("Ã\u200b³")
@example("Ã\u200b\xad\x81³")
@example("م\u200b\u200c\u200d")
@example("1.\nÂ foo")
def test_mending_twice_is_mending_once(text: str) -> None:
    once, kinds = mended(text)
    assert mended(once) == (once, [])
    assert (once == text) == (not kinds)


@settings(max_examples=400, deadline=None)
@given(DIRTY)
def test_nothing_unwanted_is_left(text: str) -> None:
    done = one(text)
    done.encode()
    assert done == unicodedata.normalize("NFC", done)
    assert not [c for c in done if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not set(done) & set("\u200b\ufeff\xad\u202e\u2028")
    assert "\n\n\n\n" not in done
    assert all(line == line.rstrip() for line in done.split("\n"))


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from(ALPHABET), max_size=14), st.text("aZ é茶\n", max_size=20))
def test_the_quick_finder_misses_no_line_that_ftfy_calls_bad(core: str, around: str) -> None:
    import ftfy
    from ftfy.badness import is_bad

    text = around + core + around[::-1]
    config = ftfy.TextFixerConfig(explain=False)
    expected = "".join(
        ftfy.fix_encoding(line, config) if is_bad(line.replace("\x85", "")) else line
        for line in text.splitlines(keepends=True)
        if line
    ) if not set(text) & set("\r\v\f\x85\u2028\u2029\x1b\x1c\x1d\x1e") else None  # fmt: skip
    if expected is not None:
        assert repairs._mojibake_finder().fixed(text) == expected


@settings(max_examples=400, deadline=None)
@given(DIRTY)
def test_the_quick_check_agrees_with_the_steps(text: str) -> None:
    slow = text
    for step, _ in repairs._STEPS:
        slow = step(slow)
    if repairs._is_clean(text):
        assert slow == text


def test_long_runs_take_linear_time() -> None:
    # A quadratic step would take minutes here.
    size = 50_000
    for unit in (
        " ",
        "\n",
        "Ã",
        "\u200d",
        "\x1b",
        "é",
        "“",
        "\x85",
        "🏴\U000e0067",
        "\u0301\u0323",
    ):
        one(f"茶{unit * size}x")


# ---- real data


def test_the_vectors_of_ftfy() -> None:
    path = SHARED_DATA / "messy-encodings" / "ftfy" / "in-the-wild.json"
    if not path.exists():
        pytest.skip("no shared data")
    cases = json.loads(path.read_text("utf-8"))
    wrong = [
        case["label"]
        for case in cases
        if one(case["original"]) != one(case.get("fixed-encoding", case["fixed"]))
    ]
    assert len(cases) >= 70
    assert not wrong


@pytest.mark.parametrize(
    "name",
    [
        "gutenberg-en/158-emma.txt.gz", "gutenberg-zh/23962-xiyouji.txt.gz",
        "gutenberg-zh/27166-nahan-luxun.txt.gz", "multi30k/val.fr.gz", "multi30k/val.de.gz",
        "xdailydialog/zh_dev_human.txt.gz",
    ],
)  # fmt: skip
def test_good_books_hold_no_mojibake(name: str) -> None:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("no shared data")
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    assert "mojibake" not in mended(text)[1]
