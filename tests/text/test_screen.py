"""What a screen sees, how it judges, how it is kept, and how it holds a streamed reply back."""

from __future__ import annotations

import itertools
import math
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import new_folder
from chatbench.text import screen as screen_module
from chatbench.text.logistic import Sparse, fit, minimise
from chatbench.text.screen import HeldBack, Layout, Screen, open_screen
from chatbench.text.traits import as_judged, presence, sightings

BITS = 14
MASK = (1 << 32) - 1
ALPHABET = "aab  cé.,'🙂你好吗茶é9あ한\u0301\ud800_"


def random_text(rng: random.Random, longest: int = 300) -> str:
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(longest)))


def random_screen(rng: random.Random, window: int = 64, rows: int = 1, **layout: float) -> Screen:
    made = np.random.default_rng(rng.randrange(1 << 32))
    weights = made.normal(size=(rows, 1 << BITS)).astype(np.float16)
    names = tuple(f"kind {n}" for n in range(rows - 1))
    biases = tuple(float(b) for b in made.normal(size=rows))
    spread, threshold = layout.get("spread", 0.3), layout.get("threshold", 0.6)
    return Screen(weights, Layout(BITS, window, spread, threshold, biases, names))


# ---- a slow twin, character by character, written from the description alone


def mixed(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B & MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & MASK
    return value ^ value >> 16


def slow_grams(text: str) -> list[tuple[int, int]]:
    """(place, bucket) of each n-gram of a text that is as_judged."""
    text = f" {text} "
    found = []
    for place, size in itertools.product(range(len(text)), range(1, 5)):
        gram = text[place : place + size]
        if len(gram) == size and (size > 1 or not gram.isascii()):
            rolled = 0
            for character in gram:
                rolled = (rolled * 0x01000193 + ord(character)) & MASK
            found.append((place, mixed(rolled ^ (0x9E3779B1 * size & MASK)) >> (32 - BITS)))
    words = []
    for is_word, run in itertools.groupby(enumerate(text), lambda item: in_word(item[1])):
        if is_word:
            letters = list(run)
            total = sum(
                mixed(ord(letter) + 1) * pow(0xCC9E2D51, n, 1 << 32)
                for n, (_, letter) in enumerate(letters)
            )
            words.append((letters[0][0], mixed(total & MASK)))
    found += [(place, mixed(word) >> (32 - BITS)) for place, word in words]
    for (place, word), (_, following) in itertools.pairwise(words):
        pair = (word * 0x85EBCA77 + following) & MASK
        found.append((place, mixed(pair) >> (32 - BITS)))
    return found


def in_word(character: str) -> bool:
    is_han = any(a <= character <= b for a, b in ("\u3400\u4dbf", "\u4e00\u9fff", "\uf900\ufaff"))
    return unicodedata.category(character)[0] in "LNM" and not is_han


def slow_logit(judge: Screen, text: str) -> float:
    text = as_judged(text)
    if not text:
        return -math.inf
    weights = judge._half[0].astype(np.float64)
    grams = slow_grams(text)

    def lean(start: float, end: float) -> float:
        buckets = {bucket for place, bucket in grams if start <= place < end}
        return math.fsum(weights[b] for b in sorted(buckets)) / math.sqrt(max(len(buckets), 1))

    padded, step = f" {text} ", judge.layout.window // 2
    offsets = [len(padded[:n].encode("utf-8", "surrogatepass")) for n in range(len(padded))]
    blocks = offsets[-1] // step + 1
    heads = [next(n for n, o in enumerate(offsets) if o >= k * step) for k in range(blocks)]
    heads.append(len(padded))
    windows = max(blocks - 1, 1)
    allowance = judge.layout.spread * math.log((windows + 1) / 2)
    found = [lean(heads[k], heads[k + 2]) for k in range(windows)] if windows > 1 else []
    bias = judge.layout.biases[0]
    return max([lean(0, math.inf) + bias, *(value + bias - allowance for value in found)])


def test_n_grams_are_those_of_the_slow_twin(rng: random.Random) -> None:
    texts = [as_judged(random_text(rng)) for _ in range(40)] + ["", "a", "好", "two words"]
    starts, buckets = presence(texts, BITS)
    for number, text in enumerate(texts):
        found = buckets[starts[number] : starts[number + 1]].tolist()
        assert found == sorted({bucket for _, bucket in slow_grams(text)})


def test_logits_are_those_of_the_slow_twin(rng: random.Random) -> None:
    for window in (8, 64, 400):
        judge = random_screen(rng, window)
        texts = [random_text(rng, 900) for _ in range(12)] + ["", "   ", "hello", "你好", "x" * 700]
        expected = [slow_logit(judge, text) for text in texts]
        assert judge.logits(texts).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_text_gets_the_same_probability_in_any_company(rng: random.Random) -> None:
    judge = random_screen(rng)
    texts = [random_text(rng, 2000) for _ in range(60)]
    together = judge.judge(texts)
    assert [judge.judge([text])[0] for text in texts] == together.tolist()
    assert judge.judge(texts[::-1]).tolist() == together[::-1].tolist()
    assert judge.rejects(texts).tolist() == [p > judge.threshold for p in together.tolist()]


def test_nothing_to_judge_is_nothing_bad(rng: random.Random) -> None:
    judge = random_screen(rng)
    assert judge.judge([]).shape == (0,)
    assert judge.judge(["", " \n\u200b"]).tolist() == [0.0, 0.0]
    assert judge.category_scores(["x"]).shape == (1, 0)


def test_categories_are_judged_each_with_its_own_row(rng: random.Random) -> None:
    judge = random_screen(rng, rows=3)
    scores = judge.category_scores(["some text", "一些文字", ""])
    assert scores.shape == (3, 2)
    for place in (0, 1):
        layout = Layout(BITS, 64, 0.3, 0.5, (judge.layout.biases[1 + place],))
        alone = Screen(judge._half[1 + place : 2 + place], layout)
        assert alone.judge(["some text", "一些文字", ""]).tolist() == scores[:, place].tolist()


def test_huge_texts_are_judged_in_pieces(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = random_screen(rng)
    text = as_judged(random_text(rng, 4000) + "end")
    monkeypatch.setattr(screen_module, "_LONGEST_PIECE", 500)
    cut = [text[i : i + 500] for i in range(0, len(text) - 64, 500 - 64)]
    assert cut[-1].endswith("end")
    assert judge.judge([text])[0] == max(slow_judged(judge, piece) for piece in cut)


def slow_judged(judge: Screen, piece: str) -> float:
    """A piece as it is: cutting may leave white space at its ends, which stays."""
    return screen_module._probability(float(judge._batch_logits([piece], 0)[0]))


@pytest.mark.parametrize("unit", ["a", "好", "a ", ". ", "\u0301", "\u200b", "a.b"])
def test_a_megabyte_of_one_thing_is_judged(rng: random.Random, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert 0 <= random_screen(rng).judge([text])[0] <= 1
    seen = sightings([as_judged(text)], BITS)
    assert len(seen.bucket) <= 5 * (len(text) + 2)  # what all the work is proportional to


# ---- the form in which texts are judged


@pytest.mark.parametrize(
    ("written", "judged"),
    [
        ("Bad  Word\n", "bad word"),
        ("Ｂａｄ　Ｗｏｒｄ", "bad word"),
        ("b\u200ba\u00add w\ufeffo\u2060rd", "bad word"),
        ("b\x00ad", "bad"),
        ("b\u0336a\u0336d\u0336", "bad"),
        ("b a d", "bad"),
        ("so b.a.d and b-a-d bar", "so bad and bad bar"),
        ("𝐛𝐚𝐝 ⓑⓐⓓ", "bad bad"),
        ("STRASSE straße", "strasse strasse"),
        ("坏　话 很 坏", "坏话很坏"),
        ("坏\u200b话", "坏话"),
        ("坏.话.说", "坏话说"),
        ("U.S.A. is 1 2 3 I am", "usa. is 1 2 3 i am"),
        ("cafe\u0301 café", "café café"),
        ("你好 world 再见", "你好 world 再见"),
        ("", ""),
        ("\u200b\u3000", ""),
    ],
)
def test_what_hides_a_word_is_taken_away(written: str, judged: str) -> None:
    assert as_judged(written) == judged


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_any_text_has_a_judged_form(text: str) -> None:
    form = as_judged(text)
    assert form == form.strip()
    assert "  " not in form
    assert "\u200b" not in form


def test_the_quick_look_for_spelled_out_words_misses_none(rng: random.Random) -> None:
    for _ in range(3000):
        text = "".join(rng.choice("ab  .-_1好") for _ in range(rng.randrange(12)))
        from chatbench.text.traits import _HINT, _SPELLED

        assert not _SPELLED.search(text) or _HINT.search(text), text


# ---- kept on disk


def test_a_saved_screen_judges_the_same(rng: random.Random, tmp_path: Path) -> None:
    judge = random_screen(rng, rows=3)
    judge.about = {"note": "说明"}
    texts = [random_text(rng) for _ in range(30)]
    opened = open_screen(judge.save(tmp_path / "screen"))
    assert opened.judge(texts).tolist() == judge.judge(texts).tolist()
    assert opened.category_scores(texts).tolist() == judge.category_scores(texts).tolist()
    assert (opened.layout, opened.about) == (judge.layout, judge.about)
    again = judge.save(tmp_path / "again")
    for path in sorted((tmp_path / "screen").iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        judge.save(tmp_path / "screen")
    judge.save(tmp_path / "screen", replace=True)


@pytest.mark.parametrize("name", ["weights.safetensors", "screen.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_folder_is_refused(
    rng: random.Random, tmp_path: Path, name: str, harm: str
) -> None:
    folder = random_screen(rng).save(tmp_path / "screen")
    data = bytearray((folder / name).read_bytes())
    if harm == "gone":
        (folder / name).unlink()
    else:
        place = rng.randrange(len(data)) if name != "manifest.json" else data.index(b"sha256") + 12
        data[place] ^= 1
        (folder / name).write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with pytest.raises(IntegrityError):
        open_screen(folder)


def test_what_is_no_screen_is_refused(rng: random.Random, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chatbench screen"):
        open_screen(tmp_path / "nowhere")
    with new_folder(tmp_path / "corpus", "corpus") as staging:
        (staging / "x").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="not a screen"):
        open_screen(tmp_path / "corpus")
    judge = random_screen(rng)
    wrong = Screen(judge._half, Layout(BITS + 1, 64, 0.3, 0.5, (0.0,)))
    with pytest.raises(IntegrityError, match="does not hold the weights"):
        open_screen(wrong.save(tmp_path / "wrong"))
    newer = Screen(judge._half, Layout(BITS, 64, 0.3, 0.5, (0.0,), (), 2))
    with pytest.raises(IntegrityError, match="version 2"):
        open_screen(newer.save(tmp_path / "newer"))


# ---- logistic regression


def random_matrix(rng: random.Random, rows: int = 40, columns: int = 12) -> Sparse:
    made = np.random.default_rng(rng.randrange(1 << 32))
    chosen = [np.flatnonzero(made.random(columns) < 0.3) for _ in range(rows)]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in chosen])])
    norms = 1 / np.sqrt(np.maximum(np.diff(starts), 1))
    scales = made.random(columns) + 0.5
    return Sparse(starts, np.concatenate(chosen).astype(np.int32), scales, norms)


def dense(matrix: Sparse) -> npt.NDArray[np.float64]:
    full = np.zeros((len(matrix.starts) - 1, len(matrix.scales)))
    for row in range(len(full)):
        for column in matrix.columns[matrix.starts[row] : matrix.starts[row + 1]]:
            full[row, column] = matrix.scales[column] * matrix.norms[row]
    return full


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_products_are_those_of_the_dense_matrix(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("chatbench.text.logistic._CHUNK_ENTRIES", chunk)
    matrix = random_matrix(rng)
    full = dense(matrix)
    made = np.random.default_rng(rng.randrange(1 << 32))
    weights, values = made.normal(size=12), made.normal(size=40)
    np.testing.assert_allclose(matrix.times(weights), full @ weights, atol=1e-12)
    np.testing.assert_allclose(matrix.transposed_times(values), full.T @ values, atol=1e-12)
    chosen = made.permutation(40)[:17]
    np.testing.assert_allclose(dense(matrix.rows(chosen)), full[chosen])


def test_the_fit_is_newtons(rng: random.Random) -> None:
    matrix = random_matrix(rng)
    targets = np.array([n % 4 == 0 for n in range(40)])
    full = np.column_stack([dense(matrix), np.ones(40)])
    signs = np.where(targets, 1.0, -1.0)
    shares = np.where(targets, 40 / 20, 40 / 60)
    weights = np.zeros(13)
    ridge = np.diag([0.5] * 12 + [0.0])
    for _ in range(30):
        chance = 1 / (1 + np.exp(signs * (full @ weights)))
        gradient = full.T @ (-signs * shares * chance) + ridge @ weights
        curved = (full * (shares * chance * (1 - chance))[:, None]).T @ full + ridge
        weights -= np.linalg.solve(curved, gradient)
    np.testing.assert_allclose(fit(matrix, targets, 0.5), weights, atol=0.02)


def test_a_quadratic_is_minimised(rng: random.Random) -> None:
    made = np.random.default_rng(rng.randrange(1 << 32))
    half = made.normal(size=(9, 6))
    curved, best = half.T @ half + np.eye(6), made.normal(size=6)

    def bowl(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        return float((x - best) @ curved @ (x - best)) / 2, curved @ (x - best)

    found = minimise(bowl, np.zeros(6), tolerance=1e-10)
    np.testing.assert_allclose(found, best, atol=1e-6)
    assert minimise(bowl, best).tolist() == best.tolist()


# ---- streaming


class Phrases:
    """A judge that knows some phrases, as a screen would see them."""

    def __init__(self, *phrases: str) -> None:
        self.phrases = phrases
        self.asked: list[str] = []

    def rejects(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        self.asked += texts
        return np.array([any(p in as_judged(text) for p in self.phrases) for text in texts])


def streamed(pieces: Sequence[str], judge: Phrases, **options: int) -> tuple[str, bool]:
    held = HeldBack(judge, **options)
    out = "".join([held.feed(piece) for piece in pieces] + [held.finish()])
    return out, held.blocked


REPLY = 'Hi there!! Tea costs "3.50"... 你好。。”茶三元！？ a bad\nword here. Then more。'
CLEAN = (
    'Wait... what?! "Yes." 你好。”再见\n\n1.5 is a number。。。\nlong words without any stop here'
)


@pytest.mark.parametrize("text", [REPLY, CLEAN])
@pytest.mark.parametrize("longest", [1, 7, 200])
def test_the_cut_into_pieces_changes_nothing(text: str, longest: int) -> None:
    expected = streamed([text], Phrases("bad word"), longest=longest)
    ends = range(len(text) + 1)
    for first, second in itertools.combinations_with_replacement(ends, 2):
        if longest == 1 and first % 5:
            continue  # each character is judged alone, so few cuts say as much
        pieces = [text[:first], text[first:second], text[second:]]
        assert streamed(pieces, Phrases("bad word"), longest=longest) == expected
    assert streamed(list(text), Phrases("bad word"), longest=longest) == expected
    assert expected[1] == (text is REPLY)
    assert text.startswith(expected[0])
    assert (expected[0] == text) == (text is CLEAN)


@given(
    st.lists(st.text('ab.。!\n ”"你好', max_size=9), max_size=12),
    st.integers(1, 20),
    st.sampled_from([0, 5, 200]),
)
@settings(max_examples=200, deadline=None)
def test_any_stream_gives_what_its_text_gives(
    pieces: list[str], longest: int, context: int
) -> None:
    text = "".join(pieces)
    options = {"longest": longest, "context": context}
    out, blocked = streamed(pieces, Phrases("ba", "你好"), **options)
    assert (out, blocked) == streamed([text], Phrases("ba", "你好"), **options)
    assert text.startswith(out)
    assert blocked or out == text
    if context >= len(text):
        assert not Phrases("ba", "你好").rejects([out])[0]


def test_no_byte_of_a_rejected_sentence_gets_out() -> None:
    judge = Phrases("bad word", "坏话")
    good = "All is well. 一切都好。"
    for sentence in ("Here is a bad word for you.", "这里有一句坏话。", "b a d  w o r d!"):
        judge = Phrases("bad word", "坏话", "badword")
        assert streamed(list(good + sentence + " And more."), judge) == (good, True)


def test_a_phrase_over_a_border_is_seen_with_what_came_before() -> None:
    out, blocked = streamed(list("It is bad. word by word."), Phrases("bad. word"))
    assert (out, blocked) == ("It is bad.", True)
    assert streamed(list("It is bad. word."), Phrases("bad. word"), context=0)[1] is False


def test_text_without_a_stop_is_let_through_at_a_space() -> None:
    held = HeldBack(Phrases("x"), longest=10)
    assert held.feed("hello ther") == ""
    assert held.feed("e") == "hello "
    assert held.feed("abcdefghij") == "thereabcde"
    assert held.finish() == "fghij"
    assert held.finish() == ""
    with pytest.raises(ValueError, match="finished"):
        held.feed("more")


def test_a_sentence_waits_for_what_follows_its_stop() -> None:
    held = HeldBack(Phrases("x"))
    assert held.feed("It costs 3.") == ""
    assert held.feed("50 today.") == ""
    assert held.feed(" ") == "It costs 3.50 today."
    assert held.feed("好的。") == ""
    assert held.feed("再") == " 好的。"
    assert held.feed("见\n") == "再见\n"
    assert held.finish() == ""


def test_a_blocked_reply_stays_silent_and_asks_no_more() -> None:
    judge = Phrases("bad")
    held = HeldBack(judge)
    assert held.feed("bad\nfine\n") == ""
    asked = len(judge.asked)
    assert held.feed("fine\n") == held.finish() == ""
    assert held.blocked
    assert len(judge.asked) == asked


def test_what_is_judged_at_once_stays_small() -> None:
    judge = Phrases("x")
    text = "word " * 4000
    assert streamed([text], judge, longest=50, context=100) == (text, False)
    assert max(map(len, judge.asked)) <= 150


def test_impossible_lengths_are_refused() -> None:
    for options in ({"longest": 0}, {"context": -1}):
        with pytest.raises(ValueError, match="at least"):
            HeldBack(Phrases("x"), **options)
