"""Metrics on strings: replies and references in, Score out, every number with n and signature.

BLEU and chrF come from sacrebleu; ROUGE from rouge-score with a tokenizer that also knows scripts
written without spaces, in which every character counts as a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

# Han, kana and their extensions: written without spaces between words.
_UNSPACED = (
    r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_OUTER_PUNCTUATION = re.compile(r"^\W+|\W+$")
_FOREIGN_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
_UNSPACED_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


class Score(msgspec.Struct, frozen=True):
    """`value` over `n` items; `signature` says how it was computed."""

    name: str
    value: float
    n: int
    signature: str


class Judged(msgspec.Struct, frozen=True):
    """One reply beside its reference; `facts` are strings a right reply must contain."""

    reply: str
    reference: str
    facts: tuple[str, ...] = ()


def has_unspaced(text: str) -> bool:
    """Whether any character is of a script written without spaces."""
    return _UNSPACED_CHARACTER.search(text) is not None


def words(text: str) -> list[str]:
    """Lower-cased words; characters of unspaced scripts one by one; punctuation left out."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not has_unspaced(folded):
        tokens = (_OUTER_PUNCTUATION.sub("", w) for w in _word_tokenizer().tokenize(folded))
        return [token for token in tokens if token]
    return _UNSPACED_WORD.findall(folded)


@lru_cache(maxsize=1)
def _word_tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def score_all(pairs: Sequence[Judged]) -> list[Score]:
    """Every metric over these replies; facts only where some are given."""
    if not pairs:
        return []
    scores = [score for metric in METRICS.values() for score in metric(pairs)]
    return [score for score in scores if score.n]


def bleu(pairs: Sequence[Judged]) -> list[Score]:
    """Corpus BLEU (Papineni et al. 2002), sacrebleu's; tokenizer `zh` when Chinese is there."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="zh" if _chinese(pairs) else "13a")
    return [_sacrebleu("bleu", metric, pairs)]


def chrf(pairs: Sequence[Judged]) -> list[Score]:
    """Corpus chrF (Popović 2015), sacrebleu's: character n-grams, right for any script."""
    from sacrebleu.metrics import CHRF

    return [_sacrebleu("chrf", CHRF(), pairs)]


def _sacrebleu(name: str, metric: Any, pairs: Sequence[Judged]) -> Score:
    result = metric.corpus_score([p.reply for p in pairs], [[p.reference for p in pairs]])
    return Score(name, result.score, len(pairs), str(metric.get_signature()))


def _chinese(pairs: Sequence[Judged]) -> bool:
    return any(has_unspaced(pair.reference) for pair in pairs)


class _RougeTokenizer:
    """What rouge-score asks for: words, with unspaced scripts by character."""

    def tokenize(self, text: str) -> list[str]:
        return _UNSPACED_WORD.findall(unicodedata.normalize("NFKC", text).lower())


def rouge(pairs: Sequence[Judged]) -> list[Score]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 100.

    Pairs in plain English letters take rouge-score's own tokenizer, so English figures are the
    published ones; it knows no other letters, so other pairs take words of any script, and
    single characters of scripts without spaces.
    """
    import rouge_score
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    plain = RougeScorer(kinds)
    any_script = RougeScorer(kinds, tokenizer=_RougeTokenizer())
    totals = dict.fromkeys(kinds, 0.0)
    foreign = [bool(_FOREIGN_LETTER.search(pair.reference + pair.reply)) for pair in pairs]
    for pair, is_foreign in zip(pairs, foreign, strict=True):
        scorer = any_script if is_foreign else plain
        for kind, result in scorer.score(pair.reference, pair.reply).items():
            totals[kind] += result.fmeasure
    version = getattr(rouge_score, "__version__", "0.1.2")
    tokens = "unicode-words+cjk-char" if any(foreign) else "default"
    signature = f"f1|mean|tok:{tokens}|rouge-score:{version}"
    return [Score(k, 100 * totals[k] / len(pairs), len(pairs), signature) for k in kinds]


def distinct(pairs: Sequence[Judged]) -> list[Score]:
    """Distinct-1 and -2 (Li et al. 2016): different n-grams among all n-grams of the replies."""
    from nltk.util import ngrams

    tokens = [words(pair.reply) for pair in pairs]
    scores = []
    for order in (1, 2):
        grams = [gram for reply in tokens for gram in ngrams(reply, order)]
        value = 100 * len(set(grams)) / len(grams) if grams else 0.0
        signature = f"ngrams:{len(grams)}|nltk-words"
        scores.append(Score(f"distinct{order}", value, len(pairs), signature))
    return scores


def exact_match(pairs: Sequence[Judged]) -> list[Score]:
    """Share of replies equal to their reference but for case, width and punctuation."""
    hits = sum(_bare(pair.reply) == _bare(pair.reference) for pair in pairs)
    return [Score("exact_match", 100 * hits / len(pairs), len(pairs), "nfkc|casefold|words")]


def _bare(text: str) -> list[str]:
    """The words; what has none, such as an emoji, stands for itself."""
    return words(text) or [_folded(text)]


def exact_fact_match(pairs: Sequence[Judged]) -> list[Score]:
    """Share of replies with the right facts: all of their own, and none that belong elsewhere.

    The facts of all rows together are the known facts; a reply is right when the known facts it
    contains are exactly those that its reference contains, its own facts among them.
    """
    rows = [pair for pair in pairs if pair.facts]
    known = known_facts(rows)
    hits = sum(fact_hit(pair, known) for pair in rows)
    value = 100 * hits / len(rows) if rows else 0.0
    return [Score("exact_fact_match", value, len(rows), f"known-facts:{len(known)}|nfkc|casefold")]


def known_facts(pairs: Sequence[Judged]) -> list[str]:
    """Every fact that any of the rows asks for."""
    return sorted({fact for pair in pairs for fact in pair.facts})


def fact_hit(pair: Judged, known: Sequence[str]) -> bool:
    """Whether one reply has the right facts and no wrong ones."""
    wanted = {fact for fact in known if contains_fact(pair.reference, fact)} | set(pair.facts)
    return wanted == {fact for fact in known if contains_fact(pair.reply, fact)}


def contains_fact(text: str, fact: str) -> bool:
    """Whether `fact` stands in `text` as a whole: "9:30" is not in "19:30", "tea" not in "team",
    "12 yuan" not in "8.12 yuan"."""
    return _fact_pattern(fact).search(_folded(text)) is not None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=4096)
def _fact_pattern(fact: str) -> re.Pattern[str]:
    folded = _folded(fact)
    before = after = ""
    if re.match(r"[0-9a-z]", folded):
        before = r"(?<![0-9a-z])" + (r"(?<![0-9][.:,])" if folded[0].isdigit() else "")
    elif folded[:1] in _CHINESE_NUMERALS:
        before = f"(?<![{_CHINESE_NUMERALS}])"
    if re.search(r"[0-9a-z]$", folded):
        after = r"(?![0-9a-z])" + (r"(?![.:,][0-9])" if folded[-1].isdigit() else "")
    elif folded[-1:] in _CHINESE_NUMERALS:
        after = f"(?![{_CHINESE_NUMERALS}])"
    return re.compile(before + re.escape(folded) + after)


_CHINESE_NUMERALS = "〇零一二两三四五六七八九十百千万亿"


METRICS: dict[str, Callable[[Sequence[Judged]], list[Score]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "distinct": distinct,
    "exact_match": exact_match,
    "exact_fact_match": exact_fact_match,
}
