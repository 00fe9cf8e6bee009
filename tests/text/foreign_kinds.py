"""More small tokenizers with odd features, and what the tests of foreign ones share."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from text.foreign import BUILDERS, Built, gpt2_like, llama2_like, llama3_like
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from chatbench.text.tokenizer import Tokenizer
from chatbench.text.tokenizer_files import TokenizerFiles

HARMLESS = (
    "Hello", "the shop ", "小店", "开门。", " ", "  ", "\n", "\t", "👍🏽", "e\u0301", "é", "\u3000",
    "12345", "'s", "!!", "한국", "1", "<", "|", ">", "[", "▁", "<0x41>", "\x00", "\u1e9b\u0323",
)  # fmt: skip
FRAGMENTS = ("<|", "|>", "</", "s>", "<s", "[IN", "ST]", "<|im_", "end|>", "q", "_id", " ")


def phi_like() -> Built:
    """Marks that swallow the space beside them, and words that were added as text."""
    backend, config = llama2_like()
    backend.add_special_tokens(
        [AddedToken("<|endoftext|>", normalized=False),
         AddedToken("<|end|>", normalized=False, rstrip=True),
         AddedToken("<mask>", normalized=False, lstrip=True)]
    )  # fmt: skip
    backend.add_tokens(
        [AddedToken("<|user|>", normalized=False, rstrip=True), AddedToken("teapot"),
         AddedToken("小茶壶", normalized=False), AddedToken("<think>", normalized=False)]
    )  # fmt: skip
    return backend, config | {"eos_token": "<|endoftext|>"}


def neox_like() -> Built:
    """Runs of spaces as added tokens that are text; the special tokens lie before them."""
    backend, config = gpt2_like()
    backend.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    return backend, config | {"tokenizer_class": "PreTrainedTokenizerFast"}


def unigram_like() -> Built:
    """A Unigram with Metaspace on both sides, whose pieces spell control tokens."""
    singles = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", "▁the", "▁shop", "▁tea", "t", "e", "a", "小店", "茶", "s", ">", "</", "s>", "▁▁"]
    rows = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", -1.0), *((b, -20.0) for b in singles)]
    rows += [(word, -2.0 - len(rows) * 0.001 - n * 0.1) for n, word in enumerate(words)]
    backend = Backend(models.Unigram(rows, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.add_tokens([AddedToken("teapot", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}


def gemma_like() -> Built:
    """Spaces become marks by a normaliser, nothing is put before a text nor taken back."""
    backend, config = llama2_like()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend, config


def treacherous_like() -> Built:
    """Merges lead to </s> and on from it, and full-width characters are normalised towards it."""
    backend, config = llama2_like()
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    for entry in ("/", "<", ">", "s", "</", "s>", "</s>s"):
        vocab.setdefault(entry, len(vocab))
    content["model"]["merges"] += [["<", "/"], ["s", ">"], ["</", "s>"], ["</s>", "s"]]
    backend = Backend.from_str(json.dumps(content))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return backend, config


def whole_words_like() -> Built:
    """Control tokens are vocabulary entries, and words are looked up before any merge."""
    backend, config = llama3_like()
    content = json.loads(backend.to_str())
    content["model"]["vocab"] |= {t["content"]: t["id"] for t in content["added_tokens"]}
    backend = Backend.from_str(json.dumps(content))
    split = pre_tokenizers.Split(Regex(r"<[^>]*>|\s*[^<\s]+|\s+|<"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    return backend, config


def normalised_like() -> Built:
    """Control tokens that are compared after normalisation, in the case of letters as well."""
    backend, config = gpt2_like()
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken("<|END|>", normalized=True, single_word=True)])
    return backend, config | {"tokenizer_class": "PreTrainedTokenizerFast"}


KINDS: dict[str, Callable[[], Built]] = BUILDERS | {
    "phi": phi_like, "neox": neox_like, "unigram": unigram_like, "gemma": gemma_like,
    "treacherous": treacherous_like, "whole words": whole_words_like,
    "normalised": normalised_like,
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def built(kind: str) -> Built:
    return KINDS[kind]()


@cache
def opened(kind: str) -> Tokenizer:
    backend, config = built(kind)
    return Tokenizer(backend, TokenizerFiles(config))


def oracle(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(str(folder))


def harmless(rng: random.Random, longest: int = 12) -> str:
    return "".join(rng.choices(HARMLESS, k=rng.randrange(longest)))


def changed(built: Built, **parts: Any) -> Tokenizer:
    content = json.loads(built[0].to_str()) | parts
    return Tokenizer(Backend.from_str(json.dumps(content)), TokenizerFiles(built[1]))
