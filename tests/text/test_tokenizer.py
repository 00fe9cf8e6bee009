"""Text to ids and back without loss, and never from text to a control token."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbench.errors import IntegrityError
from chatbench.text.splitting import QWEN2_PATTERN
from chatbench.text.template import END_OF_TEXT, TURN_END, TURN_START
from chatbench.text.tokenizer import (
    TOKENIZER_FILE,
    Tokenizer,
    open_tokenizer,
    train_tokenizer,
)
from conftest import sample_texts

# Text whose composition this Python and the tokenizer know alike.
texts = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)
property_of_text = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LOOKALIKES = (
    END_OF_TEXT, TURN_START, TURN_END, "<|", "|>", "im_start", "im_end", "endoftext", "<", "|", ">",
    "<|im_start", "|im_end|>", " ", "\n", "assistant\n", "你", "é", "e\u0301", "👍🏽", "\x00",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(sample_texts(), 400)


def spoken(rng: random.Random) -> str:
    """Text in many scripts, some of it decomposed, with emoji of several code points."""
    pieces = ["hello ", "小店", "👩‍👩‍👧‍👦", "🏳️‍🌈", "é", "e\u0301", "ж", "\u1e9b\u0323", "한국",
              "\U00020bb7", "\ufffd", "\n"]  # fmt: skip
    return "".join(rng.choices(pieces, k=rng.randrange(1, 20)))


@property_of_text
@given(text=texts)
def test_decoding_what_was_encoded_gives_the_composed_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_lookalikes_of_control_tokens_stay_text(tokenizer: Tokenizer, rng: random.Random) -> None:
    mixed = ["".join(rng.choices(LOOKALIKES, k=rng.randrange(1, 12))) for _ in range(10_000)]
    assert sum(any(t in text for t in LOOKALIKES[:3]) for text in mixed) > 1000
    for text, ids in zip(mixed, tokenizer.encode_batch(mixed), strict=True):
        assert not tokenizer.control_ids & set(ids), repr(text)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_control_tokens_are_three_ids_of_their_own(tokenizer: Tokenizer) -> None:
    ids = {tokenizer.end_of_text, tokenizer.turn_start, tokenizer.turn_end}
    assert len(ids) == 3
    assert ids == tokenizer.control_ids
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.turn_start, *tokenizer.encode("a"), tokenizer.turn_end]) == (
        "a"
    )


def test_one_by_one_and_together_are_the_same(tokenizer: Tokenizer, rng: random.Random) -> None:
    together = ["", *(spoken(rng) for _ in range(50))]
    assert tokenizer.encode_batch(together) == [tokenizer.encode(text) for text in together]


# ---- streaming


def test_a_stream_gives_the_text_in_whole_characters(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    for _ in range(300):
        text = spoken(rng).replace("\ufffd", "")
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        pieces = [stream.push(number) for number in ids]
        assert "".join(pieces) == unicodedata.normalize("NFC", text)
        assert "\ufffd" not in "".join(pieces)


def test_a_stream_of_any_ids_equals_decoding_them_together(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    for _ in range(500):
        ids = rng.choices(range(tokenizer.vocab_size), k=rng.randrange(30))
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) == tokenizer.decode(ids)


def test_half_a_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    one_byte = {content: number for number, content in enumerate(tokenizer.token_bytes)}
    stream = tokenizer.stream()
    shown = [stream.push(one_byte[bytes([byte])]) for byte in "茶👍".encode()]
    assert shown == ["", "", "茶", "", "", "", "👍"]


def test_every_byte_has_an_id(tokenizer: Tokenizer) -> None:
    assert {bytes([b]) for b in range(256)} <= set(tokenizer.token_bytes)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size


# ---- the published pattern


def test_the_split_pattern_is_the_published_one(tokenizer: Tokenizer) -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert QWEN2_PATTERN == PRETOKENIZE_REGEX
    saved = json.loads(tokenizer.to_bytes())
    split, bytes_ = saved["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": QWEN2_PATTERN}
    assert (split["behavior"], split["invert"]) == ("Isolated", False)
    assert (bytes_["add_prefix_space"], bytes_["use_regex"]) == (False, False)
    assert saved["normalizer"] == {"type": "NFC"}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", " world"]),
        ("I'M here, it's", ["I", "'M", " here", ",", " it", "'s"]),
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        ("9:30", ["9", ":", "3", "0"]),
        ("user\n小店，开门", ["user", "\n", "小店", "，开门"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n\n b", ["a", " \n\n", " b"]),
        ("end...\n\nnext", ["end", "...\n\n", "next"]),
        ("  ", ["  "]),
        ("x   ", ["x", "   "]),
        ("<|im_end|>", ["<|", "im", "_end", "|>"]),
    ],
)
def test_pieces_by_hand(text: str, pieces: list[str]) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    found = Split(Regex(QWEN2_PATTERN), behavior="isolated").pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces


# ---- training, saving, opening

_TRAIN = """
import sys
from chatbench.text.tokenizer import train_tokenizer
texts = sys.stdin.buffer.read().decode().split("\\0")
sys.stdout.buffer.write(train_tokenizer(texts, 380).to_bytes())
"""


def test_training_again_gives_the_same_bytes_in_any_process() -> None:
    texts = sample_texts(40)
    here = train_tokenizer(texts, 380).to_bytes()
    assert train_tokenizer(iter(texts), 380).to_bytes() == here
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", _TRAIN], input="\0".join(texts).encode(), capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"},
            check=True,
        )  # fmt: skip
        assert done.stdout == here


def test_the_wanted_size_counts_the_control_tokens() -> None:
    assert train_tokenizer(sample_texts(40), 380).vocab_size == 380
    assert train_tokenizer(["a"], 10_000).vocab_size == 256 + 3
    assert train_tokenizer([], 300).vocab_size == 256 + 3


def test_a_saved_tokenizer_opens_with_the_same_ids_and_digest(
    tokenizer: Tokenizer, tmp_path: Path, rng: random.Random
) -> None:
    tokenizer.save(tmp_path, context=64)
    again = open_tokenizer(tmp_path)
    text = spoken(rng)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.digest == tokenizer.digest
    assert again.to_bytes() == tokenizer.to_bytes() == (tmp_path / TOKENIZER_FILE).read_bytes()
    assert train_tokenizer(["other"], 300).digest != tokenizer.digest


def test_a_file_opens_as_well_as_its_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    moved = (tmp_path / "one" / TOKENIZER_FILE).rename(tmp_path / "mine.json")
    assert open_tokenizer(moved).digest == tokenizer.digest
    with pytest.raises(IntegrityError, match=r"nowhere does not exist; name a tokenizer\.json"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match=r"one has no tokenizer\.json"):
        open_tokenizer(tmp_path / "one")


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    with pytest.raises(IntegrityError, match=r"has no tokenizer\.json"):
        open_tokenizer(tmp_path)
    path = tmp_path / TOKENIZER_FILE
    for damage in (b"", b"{}", b"\xff\xfe", b"[" * 10_000):
        path.write_bytes(damage)
        with pytest.raises(IntegrityError, match=r"tokenizer\.json is not a readable tokenizer"):
            open_tokenizer(tmp_path)
    path.write_text(Backend(BPE()).to_str())
    with pytest.raises(IntegrityError, match=r"has no <\|endoftext\|> token"):
        open_tokenizer(tmp_path)


def test_transformers_opens_the_folder_and_gives_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path, rng: random.Random
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        tokenizer.save(tmp_path, context=64)
        theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.convert_tokens_to_ids([END_OF_TEXT, TURN_START, TURN_END]) == [
        tokenizer.end_of_text, tokenizer.turn_start, tokenizer.turn_end
    ]  # fmt: skip
    assert (theirs.eos_token, theirs.pad_token) == (TURN_END, END_OF_TEXT)
    assert theirs.model_max_length == 64
    for _ in range(100):
        text = spoken(rng)
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == ids, "nothing is put before or after"
        assert theirs.decode(ids) == tokenizer.decode(ids)
