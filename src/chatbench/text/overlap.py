"""How much of a reference a reply says: BLEU, chrF, ROUGE, token F1, exact match, contains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from chatbench.text.measuring import Floats, Judged, Measured, share, table
from chatbench.text.words import bare, has_unspaced, plain_words

_CHRF_ORDER, _CHRF_BETA = 6, 2
_FOREIGN_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
_ENGLISH_WORD = re.compile(r"[a-z0-9]+")
# Written without spaces, and not split into characters by sacrebleu's `zh`: kana, Thai, Lao,
# Myanmar, Khmer.
_BY_CHARACTER = re.compile(r"[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def bleu(pairs: Sequence[Judged]) -> list[Measured]:
    """Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it.

    Its tokenizer is `char` when most references have kana or another unspaced script but Han,
    `zh` when any has Han, else `13a`.
    """
    metric = _bleu(bleu_tokenizer([pair.reference for pair in pairs]))
    tokenize = metric.tokenizer
    rows = [
        _bleu_sums(tokenize(p.reply.rstrip()).split(), tokenize(p.reference.rstrip()).split())
        for p in pairs
    ]
    signature = str(metric.get_signature())
    return [Measured("bleu", table(rows), bleu_of, len(pairs), signature, of_parts=False)]


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's name for the tokenizer that these references need."""
    by_character = sum(_BY_CHARACTER.search(text) is not None for text in references)
    if 2 * by_character > len(references):
        return "char"
    return "zh" if by_character or any(map(has_unspaced, references)) else "13a"


@lru_cache(maxsize=4)
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenizer)
    metric.corpus_score(["a"], [["a"]])  # it signs only what it has scored
    return metric


def _bleu_sums(reply: Sequence[str], reference: Sequence[str]) -> list[int]:
    """Lengths, and for each order matches and n-grams of the reply."""
    matches, totals = [], []
    for order in range(1, 5):
        said, wanted = _grams(reply, order), _grams(reference, order)
        matches.append(sum(min(count, wanted[gram]) for gram, count in said.items()))
        totals.append(max(0, len(reply) - order + 1))
    return [len(reply), len(reference), *matches, *totals]


def bleu_of(totals: Floats) -> Floats:
    """BLEU (...) of totals (..., 10), smoothed as mteval does (sacrebleu's `exp`)."""
    said, wanted = totals[..., 0], totals[..., 1]
    matches, grams = totals[..., 2:6], totals[..., 6:10]
    smooth = np.ones(said.shape)
    logs = np.zeros(said.shape)
    for order in range(4):
        missed = (matches[..., order] == 0) & (grams[..., order] > 0)
        smooth = np.where(missed, 2 * smooth, smooth)
        hits = np.where(missed, 1 / smooth, matches[..., order])
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = logs + np.log(hits / np.where(grams[..., order] > 0, grams[..., order], np.inf))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        brevity = np.where(said < wanted, np.exp(1 - wanted / np.maximum(said, 1e-300)), 1.0)
    found: Floats = np.where(matches.any(axis=-1), 100 * brevity * np.exp(logs / 4), 0.0)
    return found


def chrf(pairs: Sequence[Judged]) -> list[Measured]:
    """Corpus chrF (Popović 2015) as sacrebleu computes it: character n-grams, for any script."""
    rows = [_chrf_sums(pair.reply, pair.reference) for pair in pairs]
    return [Measured("chrf", table(rows), chrf_of, len(pairs), _chrf_signature())]


@lru_cache(maxsize=1)
def _chrf_signature() -> str:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def _chrf_sums(reply: str, reference: str) -> list[int]:
    """For each order: n-grams of the reply, of the reference, and of both."""
    said_text, wanted_text = ("".join(text.split()) for text in (reply, reference))
    sums: list[int] = []
    for order in range(1, _CHRF_ORDER + 1):
        said, wanted = _substrings(said_text, order), _substrings(wanted_text, order)
        both = sum(min(count, wanted[gram]) for gram, count in said.items() if gram in wanted)
        # What the reference is too short for does not count against the reply.
        sums += [said.total() if wanted else 0, wanted.total(), both]
    return sums


def _substrings(text: str, order: int) -> Counter[str]:
    return Counter([text[at : at + order] for at in range(len(text) - order + 1)])


def chrf_of(totals: Floats) -> Floats:
    """chrF (...) of totals (..., 18): F of the means of precision and recall over the orders that
    both sides have."""
    said, wanted, both = (totals[..., k::3] for k in range(3))
    there = (said > 0) & (wanted > 0)
    orders = np.maximum(there.sum(axis=-1), 1)
    safe_said, safe_wanted = np.where(there, said, 1), np.where(there, wanted, 1)
    precision = np.where(there, both / safe_said, 0.0).sum(axis=-1) / orders
    recall = np.where(there, both / safe_wanted, 0.0).sum(axis=-1) / orders
    weight = _CHRF_BETA**2
    below = weight * precision + recall
    found: Floats = 100 * (1 + weight) * precision * recall / np.where(below > 0, below, 1)
    return found


def rouge(pairs: Sequence[Judged]) -> list[Measured]:
    """Mean F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), 0 to 100.

    Pairs in plain English letters take the words of rouge-score, so English figures are the
    published ones; it knows no other letters, so other pairs take words of any script, and
    single characters of scripts without spaces. Lsum takes lines as sentences.
    """
    foreign = [bool(_FOREIGN_LETTER.search(pair.reference + pair.reply)) for pair in pairs]
    found = [
        _rouge_row(pair.reply, pair.reference, any_script)
        for pair, any_script in zip(pairs, foreign, strict=True)
    ]
    tokens = "unicode-words+cjk-char" if any(foreign) else "default"
    signature = f"f1|mean|tok:{tokens}|rouge-score:0.1.2"
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    return [share(name, [row[k] for row in found], signature) for k, name in enumerate(names)]


def rouge_words(text: str, any_script: bool) -> list[str]:
    """The words that ROUGE counts; rouge-score's own unless `any_script`."""
    return plain_words(text) if any_script else _ENGLISH_WORD.findall(text.lower())


def _rouge_row(reply: str, reference: str, any_script: bool) -> tuple[float, float, float, float]:
    said, wanted = rouge_words(reply, any_script), rouge_words(reference, any_script)
    grams = [_f1_of_grams(_grams(said, n), _grams(wanted, n)) for n in (1, 2)]
    longest = _f1(_common_length(wanted, said), len(said), len(wanted))
    by_line = longest
    if "\n" in reply or "\n" in reference:
        by_line = _f1_by_line(reply, reference, any_script)
    return grams[0], grams[1], longest, by_line


def _grams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[k:] for k in range(order)), strict=False))


def _f1_of_grams(said: Counter[tuple[str, ...]], wanted: Counter[tuple[str, ...]]) -> float:
    return _f1((said & wanted).total(), said.total(), wanted.total())


def _f1(both: float, said: int, wanted: int) -> float:
    """F1 of so many matches."""
    return 2 * both / (said + wanted) if both else 0.0


def _common_length(a: Sequence[str], b: Iterable[str]) -> int:
    """Length of the longest common subsequence; a row of the table is one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << at
    row = whole = (1 << len(a)) - 1
    for token in b:
        matched = row & places.get(token, 0)
        row = (row + matched | row - matched) & whole
    return len(a) - row.bit_count()


def _f1_by_line(reply: str, reference: str, any_script: bool) -> float:
    """ROUGE-Lsum of texts of several lines: the union of common subsequences."""
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return rouge_words(text, any_script)

    scorer = RougeScorer(["rougeLsum"], tokenizer=Words())
    return float(scorer.score(reference, reply)["rougeLsum"].fmeasure)


def token_f1(pairs: Sequence[Judged]) -> list[Measured]:
    """Mean F1 of the words two texts share, in any order (Rajpurkar et al. 2016)."""
    found = []
    for pair in pairs:
        said, wanted = Counter(bare(pair.reply)), Counter(bare(pair.reference))
        found.append(_f1((said & wanted).total(), said.total(), wanted.total()))
    return [share("token_f1", found, "f1|mean|nfkc|casefold|words")]


def exact_match(pairs: Sequence[Judged]) -> list[Measured]:
    """Share of replies equal to their reference but for case, width and punctuation."""
    hits = [is_exact(pair) for pair in pairs]
    return [share("exact_match", hits, "nfkc|casefold|words")]


def is_exact(pair: Judged) -> bool:
    """Whether one reply is its reference but for case, width and punctuation."""
    return bare(pair.reply) == bare(pair.reference)


def contains(pairs: Sequence[Judged]) -> list[Measured]:
    """Share of replies that hold the words of their reference in a row."""
    hits = [holds(bare(pair.reply), bare(pair.reference)) for pair in pairs]
    return [share("contains", hits, "nfkc|casefold|words")]


def holds(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `said` without a gap."""
    border = "\0"
    row = border + border.join(said) + border
    return border + border.join(wanted) + border in row
