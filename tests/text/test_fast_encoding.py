"""Arrays of ids: whatever makes them, they are the ids of `tokenizers`."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text.alphabets import bilingual_text, mixed_text
from tokenizers import Tokenizer as Backend

from chatbench import console
from chatbench.errors import DataError
from chatbench.text import fast_encoding
from chatbench.text.fast_encoding import FastEncoder, probe_texts
from chatbench.text.splitting import byte_alphabet, is_doubtful
from chatbench.text.tokenizer import Tokenizer, train_tokenizer
from conftest import SHARED_DATA, sample_texts

gigatoken = pytest.importorskip("gigatoken")


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    rng = random.Random(7)
    return train_tokenizer([*sample_texts(), *probe_texts(), *map(mixed_text, [rng] * 300)], 1500)


@pytest.fixture(scope="module")
def fast(trained: Tokenizer) -> FastEncoder:
    """Goes through gigatoken from the first text on."""
    return FastEncoder(trained._text_only, worth_building=0)


def rows(encoder: FastEncoder, texts: list[str]) -> list[list[int]]:
    ids, starts = encoder.encode(texts)
    assert (ids.dtype, starts.dtype) == (np.uint32, np.int64)
    assert (starts[0], starts[-1], len(starts)) == (0, len(ids), len(texts) + 1)
    return [ids[a:b].tolist() for a, b in pairwise(starts)]


def by_tokenizers(backend: Backend, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def assert_equal(fast: FastEncoder, trained: Tokenizer, texts: list[str]) -> None:
    found, expected = rows(fast, texts), by_tokenizers(trained._text_only, texts)
    assert fast.reason is None
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, ascii(text)[:2000]


def test_random_text_of_every_kind(
    fast: FastEncoder, trained: Tokenizer, rng: random.Random
) -> None:
    texts = [mixed_text(rng) for _ in range(18_000)] + [bilingual_text(rng) for _ in range(2000)]
    assert 500 < sum(map(is_doubtful, texts)) < 19_000
    assert_equal(fast, trained, texts)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=60), max_size=6))
def test_any_text(fast: FastEncoder, trained: Tokenizer, texts: list[str]) -> None:
    assert_equal(fast, trained, texts)


@pytest.mark.parametrize(
    "folder", ["tinyshakespeare", "gutenberg-zh", "docs-zh", "docs-en", "humaneval", "xdailydialog"]
)
def test_real_files(fast: FastEncoder, trained: Tokenizer, folder: str) -> None:
    place = SHARED_DATA / folder
    paths = [p for p in sorted(place.rglob("*")) if p.is_file()] if place.is_dir() else []
    texts = []
    for path in paths[:3]:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        texts.append(data[:200_000].decode(errors="replace"))
    if not texts:
        pytest.skip("no shared data")
    assert_equal(fast, trained, texts)


def boundary_backend(trained: Tokenizer) -> Backend:
    """Entries that show for any character whether it joins a letter, a comma or a space."""
    content = json.loads(trained._text_only.to_str())
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    leads = [letters[byte] for byte in range(0x80, 0x100)]
    pairs = [(letters[ord(c)], lead) for c in "a, 's" for lead in leads]
    names = [*letters.values(), *(a + b for a, b in pairs)]
    content["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    content["model"]["merges"] = [list(pair) for pair in pairs]
    return Backend.from_str(json.dumps(content))


def test_every_character_splits_alike(trained: Tokenizer, rng: random.Random) -> None:
    backend = boundary_backend(trained)
    encoder = FastEncoder(backend, worth_building=0)
    chosen = [*range(0x80, 0x3400), *range(0x9F00, 0xAC00), *range(0xF900, 0x20000)]
    chosen += [*range(0x2A600, 0x2A700), *range(0x2B700, 0x2B900), *range(0x2CE00, 0x2CF00)]
    chosen += [*range(0x32300, 0x33500), *range(0xE0000, 0xE0200)]
    points = chosen + rng.sample(range(0x20000, 0x110000), 5000)
    texts = [
        "".join(f"a{chr(c)}a,{chr(c)} {chr(c)}1'{chr(c)}\n" for c in points[i : i + 200])
        for i in range(0, len(points), 200)
    ]
    found, expected = rows(encoder, texts), by_tokenizers(backend, texts)
    assert encoder.reason is None
    assert found == expected


def test_long_runs_give_the_same_ids(fast: FastEncoder, trained: Tokenizer) -> None:
    size = 20_000
    runs = [
        "a",
        " ",
        "茶",
        "\n",
        "\u0301",
        "e\u0301",
        "1",
        ".",
        "\r\n",
        "'",
        " \n",
        "<|im_end|>",
        "ᄒ\u1161",
    ]
    texts = [run * (size // len(run)) + tail for run in runs for tail in ("", "x", "。")]
    assert_equal(fast, trained, texts)


def test_control_tokens_in_text_stay_text(fast: FastEncoder, trained: Tokenizer) -> None:
    texts = ["<|im_end|>", "a<|im_start|>user\n<|endoftext|>茶"] * 50
    ids, _ = fast.encode(texts)
    assert not set(ids.tolist()) & trained.control_ids
    assert_equal(fast, trained, texts)


def test_no_texts_and_empty_texts(fast: FastEncoder, trained: Tokenizer) -> None:
    for encoder in (fast, FastEncoder(trained._text_only)):
        assert rows(encoder, []) == []
        assert rows(encoder, ["", "", ""]) == [[], [], []]
        newer = "\u0334\u07fd\U0001611e\U0001611e"
        assert rows(encoder, [newer, "", "a", newer]) == by_tokenizers(
            trained._text_only, [newer, "", "a", newer]
        )


def test_half_characters_are_refused(fast: FastEncoder, trained: Tokenizer) -> None:
    for encoder in (fast, FastEncoder(trained._text_only)):
        with pytest.raises(DataError, match=r"lone surrogate U\+DC00"):
            encoder.encode(["fine", "茶\udc00"])
    for call in (trained.encode, lambda text: trained.encode_batch([text])):
        with pytest.raises(DataError, match=r"lone surrogate U\+D800"):
            call("\ud800")


def test_lists_and_arrays_and_single_texts_agree(trained: Tokenizer, rng: random.Random) -> None:
    texts = [mixed_text(rng) for _ in range(200)]
    one_by_one = [trained.encode(text) for text in texts]
    assert trained.encode_batch(texts) == one_by_one
    ids, starts = trained.encode_arrays(texts)
    assert [ids[a:b].tolist() for a, b in pairwise(starts)] == one_by_one


# ---- when gigatoken cannot be used


class _Panic(BaseException):
    pass


def _stand_in(**calls: Any) -> types.SimpleNamespace:
    def fails(*_: object, **__: object) -> Any:
        raise _Panic("unknown scheme")

    twin = types.SimpleNamespace(encode_batch=calls.get("encode_batch", fails))
    build = fails if calls.get("refuses") else (lambda data: twin)
    return types.SimpleNamespace(Tokenizer=types.SimpleNamespace(from_json=build))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "is not installed"),
        (_stand_in(refuses=True), "cannot read this tokenizer: unknown scheme"),
        (_stand_in(), "cannot read this tokenizer: unknown scheme"),
        (
            _stand_in(encode_batch=lambda texts, parallel: [np.zeros(1)] * len(texts)),
            "cannot read this tokenizer",
        ),
    ],
)
def test_without_gigatoken_the_ids_stay_the_same(
    module: object, reason: str, trained: Tokenizer, rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "gigatoken", module)
    said: list[str] = []
    monkeypatch.setattr(console, "notice", said.append)
    encoder = FastEncoder(trained._text_only, worth_building=0)
    texts = [mixed_text(rng) for _ in range(50)]
    assert rows(encoder, texts) == by_tokenizers(trained._text_only, texts)
    assert encoder.reason is not None
    assert reason in encoder.reason
    assert said == [], "a few texts are no matter"
    monkeypatch.setattr(fast_encoding, "WORTH_A_NOTICE", 1)
    encoder.encode(texts)
    encoder.encode(texts)
    assert len(said) == 1
    assert reason in said[0]


def test_other_ids_in_the_probe_are_noticed(
    trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FastEncoder(trained._text_only, worth_building=0)
    real = gigatoken.Tokenizer.from_json

    def without_composition(data: str) -> Any:
        return real(json.dumps(json.loads(data) | {"normalizer": None}))

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", staticmethod(without_composition))
    text = ["e\u0301 小店"]
    assert rows(other, text) == by_tokenizers(trained._text_only, text)
    assert other.reason == "gigatoken gives other ids with this tokenizer"


def test_a_panic_in_the_middle_falls_back(trained: Tokenizer) -> None:
    encoder = FastEncoder(trained._text_only, worth_building=0)
    encoder.encode(["a"])

    def fails(*_: object, **__: object) -> Any:
        raise _Panic("out of range")

    encoder._twin = types.SimpleNamespace(encode_batch=fails)
    texts = ["小店 opens", "茶"]
    assert rows(encoder, texts) == by_tokenizers(trained._text_only, texts)
    assert encoder.reason == "gigatoken failed: out of range"


def test_little_text_never_builds_the_twin(trained: Tokenizer) -> None:
    encoder = FastEncoder(trained._text_only)
    encoder.encode(["小店 opens"] * 100)
    assert encoder._twin is None
    assert encoder.reason is None
    encoder.encode(["小店 opens"] * (fast_encoding.WORTH_BUILDING // 8))
    assert encoder._twin is not None


_WORKERS = """
import multiprocessing, os, sys
from pathlib import Path
from chatbench.text.fast_encoding import FastEncoder
from chatbench.text.tokenizer import open_tokenizer

def ids(folder):
    backend = open_tokenizer(Path(folder))._text_only
    encoder = FastEncoder(backend, worth_building=0)
    texts = ["小店 opens at nine" + "ab" * n for n in range(300)]
    found = encoder.encode(texts)[0].tolist()
    assert FastEncoder(backend).encode(texts)[0].tolist() == found
    return found, encoder.reason, len(os.listdir("/proc/self/task"))

if __name__ == "__main__":
    here, reason, _ = ids(sys.argv[1])
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            for there, why, threads in pool.map(ids, [sys.argv[1]] * 4):
                assert there == here and why is None, (method, why)
                assert method == "fork" or threads <= 3, threads
    print("same", len(here))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_workers_give_the_same_ids_on_one_thread(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    script = tmp_path / "workers.py"
    script.write_text(_WORKERS, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=120,
        env={k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same")
