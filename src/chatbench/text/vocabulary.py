"""What a tokenizer's entries are worth in each language, and how to add entries for new text."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer as Backend

from chatbench.errors import UsageError
from chatbench.text.bpe_training import (
    Merges,
    WordCounts,
    count_words,
    in_alphabet,
    learn_merges,
)
from chatbench.text.splitting import QWEN2_PATTERN, byte_alphabet
from chatbench.text.tokenizer import Tokenizer
from chatbench.text.words import has_unspaced

_WORST = 8
_FREQUENT = 2000


class Fertility(msgspec.Struct, frozen=True):
    """How finely a tokenizer cuts the texts of one language.

    `bytes` are UTF-8. `words` are runs of letters, digits and marks, and every character of a
    script written without spaces is a word of its own. `worst_words` are those of the frequent
    words with a letter that are cut into most tokens, with their number of tokens.
    """

    language: str
    texts: int
    bytes: int
    characters: int
    words: int
    tokens: int
    entries_seen: int = 0
    entries: int = 0
    worst_words: tuple[tuple[str, int], ...] = ()

    @property
    def bytes_per_token(self) -> float:
        """More is better; 0 without tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_word(self) -> float:
        """Of Chinese: tokens per character. Fewer is better; 0 without words."""
        return self.tokens / self.words if self.words else 0.0

    @property
    def vocabulary_use(self) -> float:
        """Share of the entries, control tokens aside, that occur in these texts."""
        return self.entries_seen / self.entries if self.entries else 0.0


def fertility(
    tokenizer: Tokenizer, texts_by_language: Mapping[str, Sequence[str]]
) -> list[Fertility]:
    """One row for each language, in the order given. Raises DataError for lone surrogates."""
    return [_row(tokenizer, name, texts) for name, texts in texts_by_language.items()]


def _row(tokenizer: Tokenizer, language: str, texts: Sequence[str]) -> Fertility:
    ids, _ = tokenizer.encode_arrays(texts)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_words(text))
    seen = np.unique(ids)
    controls = np.fromiter(sorted(tokenizer.control_ids), np.int64, len(tokenizer.control_ids))
    return Fertility(
        language=language,
        texts=len(texts),
        bytes=sum(len(text.encode()) for text in texts),
        characters=sum(map(len, texts)),
        words=words.total(),
        tokens=len(ids),
        entries_seen=len(np.setdiff1d(seen, controls)),
        entries=tokenizer.vocab_size - len(controls),
        worst_words=_worst_words(tokenizer, words),
    )


def _words(text: str) -> Iterator[str]:
    for run in _run_pattern().findall(text):
        if not has_unspaced(run):
            yield run
            continue
        for unspaced, group in groupby(run, has_unspaced):
            characters = "".join(group)
            yield from (characters if unspaced else [characters])


@cache
def _run_pattern() -> re.Pattern[str]:
    """Letters, digits and marks; \\w alone would cut Indic words at their vowel signs."""
    marks = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(rf"(?:[^\W_]|[{marks}])+")


def _worst_words(tokenizer: Tokenizer, words: Counter[str]) -> tuple[tuple[str, int], ...]:
    lettered = [item for item in words.items() if any(c.isalpha() for c in item[0])]
    frequent = sorted(lettered, key=lambda item: (-item[1], item[0]))[:_FREQUENT]
    # A word of a spaced script is met after a space, and has its entries with it.
    spelled = [word if has_unspaced(word) else f" {word}" for word, _ in frequent]
    pieces = map(len, tokenizer.encode_batch(spelled))
    cut = [(word, n) for (word, _), n in zip(frequent, pieces, strict=True) if n > 1]
    return tuple(sorted(cut, key=lambda item: -item[1])[:_WORST])


# ---- extension


def extend_tokenizer(
    base: Tokenizer, texts: Iterable[str] | WordCounts, vocab_size: int
) -> Tokenizer:
    """`base` with entries learned from `texts`, up to `vocab_size` in all.

    Learning goes on where that of `base` ended: its merges are made in the words first, the new
    ones follow them in rank and take the ids after all ids of `base`, control tokens included.
    No id of `base` changes its meaning, and a word in which no new merge applies keeps its ids.
    Counts that are given must have been counted with `count_for(base, texts)`. Few texts may yield
    fewer entries. Raises UsageError when `base` is no byte-level BPE or already larger.
    """
    content = json.loads(base.to_bytes())
    _require_byte_level(content)
    size = base.vocab_size
    if vocab_size < size:
        raise UsageError(
            f"the tokenizer has {size} entries already, more than the {vocab_size} wanted",
            hint=f"give --vocab-size above {size}",
        )
    words = texts if isinstance(texts, WordCounts) else count_for(base, texts)
    entries = base.token_bytes
    known = _known_merges(content["model"])
    learned = learn_merges(words, entries, known, vocab_size - size, unique=True)
    return _with_merges(base, content, learned.tolist())


def count_for(base: Tokenizer, texts: Iterable[str]) -> WordCounts:
    """Words of `texts` as `base` splits them. Raises DataError for lone surrogates."""
    content = json.loads(base.to_bytes())
    return count_words(texts, None if _splits_like_ours(content) else base.split_words)


def _splits_like_ours(content: dict[str, Any]) -> bool:
    found = content["pre_tokenizer"]
    parts = found["pretokenizers"] if found and found["type"] == "Sequence" else []
    return (
        len(parts) == 2
        and parts[0].get("pattern") == {"Regex": QWEN2_PATTERN}
        and (parts[0]["behavior"], parts[0]["invert"]) == ("Isolated", False)
        and parts[1]["type"] == "ByteLevel"
        and not (parts[1]["add_prefix_space"] or parts[1]["use_regex"])
        and content["normalizer"] == {"type": "NFC"}
    )


def _require_byte_level(content: dict[str, Any]) -> None:
    model = content["model"]
    vocab = model.get("vocab") if model.get("type") == "BPE" else None
    whole = isinstance(vocab, dict) and set(byte_alphabet()) <= set(vocab)
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
           "byte_fallback", "ignore_merges")  # fmt: skip
    if not whole or any(model.get(name) for name in odd):
        raise UsageError(
            "only byte-level BPE tokenizers can be extended, and this one is of another kind",
            hint="train a new one: leave --tokenizer out",
        )


def _known_merges(model: dict[str, Any]) -> Merges:
    vocab = model["vocab"]
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    triples = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
    return np.array(triples, np.uint32).reshape(-1, 3)


def _with_merges(base: Tokenizer, content: dict[str, Any], learned: list[list[int]]) -> Tokenizer:
    vocab: dict[str, int] = content["model"]["vocab"]
    # The ids between the old entries and the new ones belong to the control tokens: their names
    # stand in the vocabulary, where no merge leads, so that no loader finds a hole.
    vocab |= {token["content"]: token["id"] for token in content["added_tokens"]}
    spelled = [in_alphabet(entry) for entry in base.token_bytes]
    merges = [m if isinstance(m, list) else m.split(" ") for m in content["model"]["merges"]]
    for left, right, token in learned:
        spelled.append(spelled[left] + spelled[right])
        vocab[spelled[token]] = token
        merges.append([spelled[left], spelled[right]])
    content["model"]["merges"] = merges
    return Tokenizer(Backend.from_str(json.dumps(content)), base.files)
