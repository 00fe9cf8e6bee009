"""Scripts are counted in words, languages of one script are told apart, and only the unwanted
go."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.conversation import exchange
from chatbench.corpus.cleaning import language
from chatbench.corpus.cleaning.language import CODES, keep, languages
from chatbench.corpus.document import Document, Dropped
from chatbench.errors import UsageError
from conftest import CHINESE, ENGLISH, SHARED_DATA

GERMAN = "Der Laden öffnet um neun Uhr morgens, und im Regal stehen Tee, Bücher und Papier."
RUSSIAN = "Магазин открывается в девять часов утра, на полках стоят чай и книги."
UKRAINIAN = "Крамниця відчиняється о дев'ятій годині ранку, на полицях стоять чай і книжки."
SHORT = "Tea, please!"


def documents(*texts: str) -> list[Document]:
    return [Document(f"t:{n}", text=text) for n, text in enumerate(texts)]


def passed(wanted: list[str], *texts: str) -> list[bool]:
    return [isinstance(one, Document) for one in keep(wanted)(documents(*texts))[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH, "latin"), (CHINESE, "zh"), (GERMAN, "latin"), (RUSSIAN, "cyrillic"),
        ("彼は東京の大学で日本語を教えている。", "ja"), ("コーヒー", "ja"), ("ﾊﾛｰ", "ja"),
        ("저는 커피를 좋아합니다.", "ko"), ("أحب القهوة في الصباح", "ar"), ("אני אוהב קפה", "he"),
        ("ฉันชอบกาแฟตอนเช้า", "th"), ("मुझे कॉफी पसंद है", "hi"), ("Μου αρέσει ο καφές", "el"),
        ("ＨＥＬＬＯ", "latin"), ("ㄅㄆㄇ", "zh"), ("𠀀𠀁", "zh"),
        ("", "none"), ("12:30 … 👍🏽 100 % µ²", "none"), ("Հայերեն լեզու", "mixed"),
        ("我在用 TensorFlow 和 PyTorch 训练一个很小的语言模型", "zh"),
        ("他看过《となりのトトロ》这部日本动画电影，说它是宫崎骏最好的作品之一，值得一看再看，"
         "尤其适合带着孩子在雨天的下午一起慢慢欣赏，每一个画面都很美", "zh"),
        ("茶叶 means tea leaves", "zh+latin"),
        ("чай это tea and книги are books", "cyrillic+latin"),
        ("茶茶茶 tea tea tea tea чай чай чай чай", "mixed"),
        ("schön\ud800", "latin"),
    ],
)  # fmt: skip
def test_the_script_names_the_language(text: str, expected: str) -> None:
    assert languages([text]) == [expected]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("茶叶のカ한글aäБжαא 1،。"), max_size=12), max_size=6))
def test_a_text_is_judged_alone_and_as_counting_by_hand_says(texts: list[str]) -> None:
    assert languages(texts) == [by_hand(text) for text in texts]


def by_hand(text: str) -> str:
    """The slow twin: letter by letter, through names of characters."""
    per_word = {"zh": 1, "ja": 2, "ko": 2}
    words = dict.fromkeys(language._NAMES[1:], 0.0)
    for letter in text:
        if not letter.isalpha():
            continue
        name = unicodedata.name(letter)
        script = {
            "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "ARABIC": "ar",
            "HEBREW": "he", "GREEK": "el", "CYRILLIC": "cyrillic", "LATIN": "latin",
        }[name.split()[0]]  # fmt: skip
        words[script] += 1 / per_word.get(script, 5)
    total = sum(words.values())
    if not total:
        return "none"
    east = words["zh"] + words["ja"]
    name = "ja" if words["ja"] and words["ja"] >= 0.1 * east - 1e-12 else "zh"
    words["zh"] = words["ja"] = 0.0
    words[name] = east
    best = sorted(words, key=lambda script: (words[script], language._NAMES.index(script)))
    first, second = best[-1], best[-2]
    if words[first] >= 0.6 * total - 1e-12:
        return first
    if words[first] + words[second] < 0.9 * total - 1e-12:
        return "mixed"
    return "+".join(sorted((first, second), key=language._NAMES.index))


# ---- the stage


def test_script_alone_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    texts = (CHINESE, ENGLISH, RUSSIAN, "茶叶 means tea leaves", "42")
    assert passed(["zh"], *texts) == [True, False, False, True, False]
    assert passed(["latin"], *texts) == [False, True, False, True, False]
    assert passed(["cyrillic", "none"], *texts) == [False, False, True, False, True]
    with pytest.raises(UsageError, match=r'needs py3langid; pip install "chatbench\[data\]"'):
        keep(["zh", "en"])
    assert passed(["latin", "de"], ENGLISH) == [True]


@pytest.mark.parametrize("wanted", [["klingon"], ["en", "zh-hans"], [""], []])
def test_unknown_codes_are_refused(wanted: list[str]) -> None:
    with pytest.raises(UsageError):
        keep(wanted)
    assert passed([" ZH "], CHINESE) == [True]


def test_neighbours_are_told_apart() -> None:
    pytest.importorskip("py3langid")
    texts = (ENGLISH, GERMAN, RUSSIAN, UKRAINIAN, CHINESE, SHORT)
    assert passed(["en"], *texts) == [True, False, False, False, False, True]
    assert passed(["de", "uk"], *texts) == [False, True, False, True, False, True]
    done, counts = keep(["en", "zh"])(documents(*texts))
    assert [one.detail for one in done if isinstance(one, Dropped)] == [
        "de",
        "cyrillic",
        "cyrillic",
    ]
    assert {one.reason for one in done if isinstance(one, Dropped)} == {"language"}
    assert counts == {"en": 1, "de": 1, "cyrillic": 2, "zh": 1, "latin": 1}
    assert passed(["en"], "https://example.org/der/laden/oeffnet " * 20 + ENGLISH) == [True]


def test_mixed_text_passes_for_either_of_its_scripts() -> None:
    pytest.importorskip("py3langid")
    mixed = "茶叶 means tea leaves"
    for wanted in (["zh"], ["en"], ["de", "fr"], ["zh", "en"]):
        assert passed(wanted, mixed) == [True]
    assert passed(["ru"], mixed) == [False]


def test_conversations_are_judged_as_a_whole() -> None:
    chats = [
        Document("a", messages=exchange("茶多少钱？", "一两二十元。")),
        Document(
            "b", messages=exchange("Was kostet der Tee, bitte?", "Zwanzig Yuan für das Pfund.")
        ),
    ]
    pytest.importorskip("py3langid")
    done, counts = keep(["zh", "en"])(chats)
    assert done == [chats[0], Dropped("language", "de")]
    assert counts == {"zh": 1, "de": 1}


def test_batches_have_no_borders_and_the_stage_can_travel(rng: random.Random) -> None:
    pytest.importorskip("py3langid")
    texts = [ENGLISH, CHINESE, GERMAN, RUSSIAN, SHORT, "", "茶 tea"] * 3
    rng.shuffle(texts)
    batch = documents(*texts)
    stage = keep(["zh", "de"])
    done, counts = stage(batch)
    assert all(one is before for one, before in zip(done, batch, strict=True)
               if isinstance(one, Document))  # fmt: skip
    cut = rng.randrange(len(batch))
    left, right = stage(batch[:cut]), stage(batch[cut:])
    assert (left[0] + right[0], left[1] + right[1]) == (done, counts)
    assert stage([]) == ([], {})
    copy = msgspec.convert(msgspec.to_builtins(stage), type(stage))
    assert copy(batch) == (done, counts)


def test_every_code_is_known_to_the_classifier() -> None:
    pytest.importorskip("py3langid")
    for script, codes in language.SHARING.items():
        assert set(language._identifier(script).labels) == set(codes)
    assert len(set(CODES)) == len(CODES)


# ---- real data


def contexts(code: str) -> list[str]:
    path = SHARED_DATA / "xquad" / f"xquad.{code}.json.gz"
    if not path.exists():
        pytest.skip("no shared data")
    data: Any = json.loads(gzip.decompress(path.read_bytes()))["data"]
    return [part["context"] for article in data for part in article["paragraphs"]]


def dialogues(code: str) -> list[str]:
    path = SHARED_DATA / "xdailydialog" / f"{code}_dev_human.txt.gz"
    if not path.exists():
        pytest.skip("no shared data")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [line.replace("__eou__", "\n") for line in lines if line.strip()]


@pytest.mark.parametrize(
    ("read", "code"),
    [(contexts, "en"), (contexts, "zh"), (contexts, "de"), (contexts, "es"),
     (dialogues, "en"), (dialogues, "zh"), (dialogues, "de"), (dialogues, "it")],
)  # fmt: skip
def test_real_texts_keep_their_language(read: Any, code: str) -> None:
    pytest.importorskip("py3langid")
    texts = read(code)[:300]
    assert sum(passed([code], *texts)) >= 0.99 * len(texts)
    others = [other for other in ("en", "zh", "de", "fr", "ru") if other != code]
    assert sum(passed(others, *texts)) <= 0.01 * len(texts)


def test_old_novels_in_traditional_characters_are_chinese() -> None:
    path = SHARED_DATA / "gutenberg-zh" / "24264-hongloumeng.txt.gz"
    if not path.exists():
        pytest.skip("no shared data")
    text = gzip.decompress(path.read_bytes()).decode("utf-8-sig")[2_000:200_000]
    pieces = [text[at : at + 500] for at in range(0, len(text), 500)]
    assert languages(pieces) == ["zh"] * len(pieces)
