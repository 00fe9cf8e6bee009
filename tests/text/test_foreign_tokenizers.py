"""Tokenizers of other families: the ids and texts of transformers."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from text.alphabets import bilingual_text, mixed_text
from text.foreign import gpt2_like, llama2_like, write_tokenizer
from text.foreign_kinds import (
    HARMLESS,
    KINDS,
    built,
    changed,
    every_kind,
    harmless,
    opened,
    oracle,
)
from tokenizers import Tokenizer as Backend
from tokenizers import (
    decoders,
    models,
    pre_tokenizers,
)

from chatbench.errors import IntegrityError
from chatbench.text.fast_encoding import FastEncoder
from chatbench.text.tokenizer import Tokenizer, open_tokenizer
from chatbench.text.tokenizer_files import TokenizerFiles
from conftest import SHARED_DATA


@every_kind
def test_plain_text_has_the_ids_of_transformers(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    theirs = oracle(write_tokenizer(tmp_path, built(kind)))
    ours = open_tokenizer(tmp_path)
    texts = ["", " ", *(harmless(rng) for _ in range(300))]
    texts += [mixed_text(rng) for _ in range(50)] + [bilingual_text(rng) for _ in range(10)]
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), repr(text)
        found, offsets = ours.encode_with_offsets(text)
        assert found == ids
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
    batch, starts = ours.encode_arrays(texts)
    assert batch.tolist() == [number for text in texts for number in ours.encode(text)]
    assert len(starts) == len(texts) + 1


# transformers shows a special token whose name normalisation changed, so that kind is left out.
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"normalised"}))
def test_ids_become_the_text_of_transformers(kind: str, tmp_path: Path, rng: random.Random) -> None:
    theirs = oracle(write_tokenizer(tmp_path, built(kind), chat_template="none"))
    ours = open_tokenizer(tmp_path)
    more = [number for number in sorted(ours.controls.values()) if number in ours.control_ids]
    for _ in range(300):
        ids = ours.encode(harmless(rng))
        for _ in range(rng.randrange(3)):  # between whole texts, not inside a character
            ids = rng.choice(([*ids, rng.choice(more)], [rng.choice(more), *ids]))
        ids += ours.encode(harmless(rng)) if rng.random() < 0.3 else []
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == expected
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) == expected


@every_kind
def test_any_ids_stream_as_they_decode(kind: str, rng: random.Random) -> None:
    tokenizer = opened(kind)
    for _ in range(300):
        ids = rng.choices(range(tokenizer.vocab_size + 3), k=rng.randrange(12))
        stream = tokenizer.stream()
        pieces = [stream.push(number) for number in ids]
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "smollm", "qwen", "llama2", "mistral", "gemma"])
def test_text_comes_back(kind: str, rng: random.Random) -> None:
    tokenizer = opened(kind)
    for _ in range(200):
        text = harmless(rng).replace("▁", "").replace("<0x41>", "").replace("e\u0301", "é")
        text = text.replace("\u1e9b\u0323", "")
        if kind == "mistral":  # its split puts no space before one that is there
            text = text.lstrip(" ")
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_of_entries_by_hand() -> None:
    pieces = opened("llama2")
    table, ids = pieces.token_bytes, built("llama2")[0].token_to_id
    assert table[ids("▁")] == b" "
    assert table[ids("<0xE8>")] == b"\xe8"
    assert table[ids("茶")] == "茶".encode()
    assert table[ids("</s>")] == table[ids("<unk>")] == b""
    assert pieces.decode([ids("<s>"), ids("▁"), ids("▁"), ids("茶")]) == " 茶"
    assert pieces.decode([ids(f"<0x{byte:02X}>") for byte in "茶".encode()]) == "茶"
    characters = opened("llama3")
    assert characters.token_bytes[built("llama3")[0].token_to_id("Ġ")] == b" "
    unigram = opened("unigram")
    assert unigram.decode(unigram.encode("the shop")) == "the shop"


def test_a_run_of_byte_tokens_is_shown_as_soon_as_it_is_a_character() -> None:
    tokenizer, ids = opened("llama2"), built("llama2")[0].token_to_id
    stream = tokenizer.stream()
    shown = [stream.push(ids(f"<0x{byte:02X}>")) for byte in " 👍a".encode()]
    assert shown == ["", "", "", "", "👍", "a"]


def test_marks_that_are_not_special_are_shown_and_still_no_text() -> None:
    backend, config = built("phi")
    tokenizer = Tokenizer(backend, TokenizerFiles(config, own_template="{{ '<think>' }}"))
    think = tokenizer.controls["<think>"]
    assert think in tokenizer.control_ids
    assert think not in tokenizer.encode("<think>")
    assert tokenizer.decode([think]) == "<think>"
    assert think in opened("phi").encode("<think>"), "no template, no mark"
    assert opened("phi").encode("小茶壶")[-1] == opened("phi").controls["小茶壶"]
    assert opened("phi").controls["<|user|>"] not in opened("phi").encode("<|user|>")


# ---- what cannot be opened


def test_kinds_that_cannot_be_decoded_exactly_are_refused_by_name(tmp_path: Path) -> None:
    pieces = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    pieces.add_special_tokens(["</s>"])
    pieces.decoder = decoders.WordPiece()
    (tmp_path / "tokenizer.json").write_text(pieces.to_str())
    with pytest.raises(
        IntegrityError, match=r"tokenizer\.json: the tokenizer is of kind WordPiece"
    ):
        open_tokenizer(tmp_path)
    words = Backend(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.add_special_tokens(["</s>"])
    with pytest.raises(IntegrityError, match="of kind WordLevel"):
        Tokenizer(words)
    with pytest.raises(IntegrityError, match="the decoder none"):
        changed(gpt2_like(), decoder=None)
    with pytest.raises(IntegrityError, match="the decoder BPEDecoder"):
        changed(gpt2_like(), decoder={"type": "BPEDecoder", "suffix": "</w>"})
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    with pytest.raises(IntegrityError, match="the decoder Strip"):
        changed(llama2_like(), decoder=strip)
    byte_level = json.loads(decoders.ByteLevel().__getstate__())
    with pytest.raises(IntegrityError, match=r"the decoder ByteLevel \+ Strip"):
        changed(
            gpt2_like(),
            decoder={"type": "Sequence", "decoders": [byte_level, strip]},
        )
    pattern = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}
    with pytest.raises(IntegrityError, match="the decoder Replace"):
        changed(llama2_like(), decoder=pattern)
    model = json.loads(gpt2_like()[0].to_str())["model"] | {"end_of_word_suffix": "</w>"}
    with pytest.raises(IntegrityError, match="marked beginnings or ends"):
        changed(gpt2_like(), model=model)


def test_an_id_beyond_all_bounds_is_refused() -> None:
    content = json.loads(gpt2_like()[0].to_str())
    content["model"]["vocab"]["Ġ茶"] = 4_000_000_000
    with pytest.raises(IntegrityError, match="numbers its entries up to 4,000,000,000"):
        Tokenizer(Backend.from_str(json.dumps(content)))


def test_a_vocabulary_that_lacks_characters_writes_its_unknown_token(tmp_path: Path) -> None:
    model = json.loads(llama2_like()[0].to_str())["model"] | {"byte_fallback": False}
    tokenizer = changed(llama2_like(), model=model)
    assert tokenizer.control_ids == {1, 2}
    text = "茶👍茶 <unk></s>"
    ids = tokenizer.encode(text)
    write_tokenizer(tmp_path, (Backend.from_str(tokenizer.to_bytes().decode()), llama2_like()[1]))
    theirs = oracle(tmp_path)
    assert tokenizer.encode(text[:9]) == theirs.encode(text[:9], add_special_tokens=False)
    assert 0 in ids
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids).startswith("茶茶")


def test_truncation_padding_and_dropout_of_the_file_change_nothing() -> None:
    model = json.loads(gpt2_like()[0].to_str())["model"] | {"dropout": 0.9}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    odd = changed(gpt2_like(), model=model, truncation=truncation, padding=padding)
    text = "the shop opens at nine 小店早上九点开门"
    assert odd.encode(text) == opened("gpt2").encode(text)
    assert odd.encode_marked([(text, True)]) == opened("gpt2").encode_marked([(text, True)])


# ---- the fast way


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen", "llama2", "mistral", "smollm", "neox"])
def test_many_texts_at_once_have_the_same_ids(kind: str, rng: random.Random) -> None:
    pytest.importorskip("gigatoken")
    tokenizer = Tokenizer(built(kind)[0], TokenizerFiles(built(kind)[1]))
    texts = ["", *(mixed_text(rng) for _ in range(800)), *(bilingual_text(rng) for _ in range(50))]
    texts += ["".join(rng.choices((*HARMLESS, *tokenizer.controls), k=9)) for _ in range(400)]
    expected = [tokenizer.encode(text) for text in texts]
    tokenizer.encode_arrays([])
    assert tokenizer._fast is not None
    if kind == "neox":
        assert tokenizer._fast.reason == "some of its added tokens are text"
        tokenizer._fast._worth_building = 0
    else:
        tokenizer._fast = FastEncoder(tokenizer._text_only, worth_building=0)
    assert tokenizer.encode_batch(texts) == expected


# ---- the published vocabulary


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    folder = SHARED_DATA / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("the published GPT-2 vocabulary is not here")
    vocab = json.loads(gzip.decompress((folder / "encoder.json.gz").read_bytes()))
    lines = gzip.decompress((folder / "vocab.bpe.gz").read_bytes()).decode().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend)


def test_the_published_gpt2_vectors(gpt2: Tokenizer) -> None:
    folder = SHARED_DATA / "gpt2-tokenizer"
    given = (folder / "test-vectors.inp").read_text(encoding="utf-8")
    texts = given.split("\n__ggml_vocab_test__\n")
    lines = (folder / "test-vectors.out").read_text(encoding="utf-8").splitlines()
    assert len(texts) >= 46
    for text, line in zip(texts, lines, strict=False):
        ids = [int(number) for number in line.split()]
        assert gpt2.encode(text) == ids, repr(text)
        assert gpt2.decode(ids) == text
    assert gpt2.end_of_text == 50256
    assert gpt2.stops == {50256}
    assert gpt2.vocab_size == 50257
    assert 50256 not in gpt2.encode("<|endoftext|>")


def test_a_long_published_encoding(gpt2: Tokenizer) -> None:
    found = json.loads((SHARED_DATA / "gpt2-tokenizer" / "gpt2_encoded_tokens.json").read_text())
    ids = found["token_ids"]
    assert gpt2.encode(found["text"]) == ids
    assert gpt2.decode(ids) == found["text"]


# ---- who uses it


def test_a_preview_calls_control_tokens_by_their_names() -> None:
    from chatbench.corpus.reports.preview import pieces
    from chatbench.text.template import Rendered

    for kind, name in (("llama3", "<|eot_id|>"), ("llama2", "</s>")):
        tokenizer = opened(kind)
        ids = [*tokenizer.encode("茶"), tokenizer.controls[name]]
        *_, last = pieces(tokenizer, Rendered(ids, [1] * len(ids)), range(len(ids)))
        assert (last.drawn, last.control) == (name, True)


def test_an_extended_tokenizer_keeps_what_its_files_said() -> None:
    from chatbench.text.vocabulary import extend_tokenizer

    base = opened("qwen")
    grown = extend_tokenizer(base, ["teapots 小茶壶"] * 20, base.vocab_size + 5)
    assert grown.vocab_size == base.vocab_size + 5
    assert (grown.settings, grown.stops, grown.controls) == (
        base.settings, base.stops, base.controls
    )  # fmt: skip


@every_kind
def test_a_text_that_goes_on_keeps_its_spaces(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    """Cut the ids of a text anywhere: what follows the cut is what is missing."""
    write_tokenizer(tmp_path, built(kind))
    tokenizer = open_tokenizer(tmp_path)
    for _ in range(40):
        ids = tokenizer.encode(harmless(rng))
        cut = rng.randrange(1, max(2, len(ids)))
        head, tail = tokenizer.stream(), tokenizer.stream(begun=True)
        begun = "".join(map(head.push, ids[:cut]))
        rest = "".join(map(tail.push, ids[cut:]))
        whole = tokenizer.decode(ids)
        if begun.strip() and whole.startswith(begun) and "\ufffd" not in rest:
            missing = whole[len(begun) :]
            # A cut inside a character loses that character on both sides.
            assert rest == missing or not missing.isascii()


@every_kind
def test_the_space_before_a_text_is_not_counted_as_text(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    write_tokenizer(tmp_path, built(kind))
    tokenizer = open_tokenizer(tmp_path)
    for text in ("tea and 茶", "茶叶", "x", *(harmless(rng).strip() for _ in range(40))):
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) == text and ids:
            size = sum(len(tokenizer.token_bytes[number]) for number in ids)
            assert size - tokenizer.opening_space(ids[0]) == len(text.encode()), repr(text)
