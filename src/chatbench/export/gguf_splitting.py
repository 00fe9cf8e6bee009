"""Which of llama.cpp's word splitters cuts text as a tokenizer.json does.

A GGUF file names its splitter (`tokenizer.ggml.pre`) instead of describing it, so a splitter that
is not in the table below is refused: another one would cut words differently, and the model would
see ids it was not trained on (llama.cpp `src/llama-vocab.cpp`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from chatbench.errors import IntegrityError
from chatbench.text.splitting import QWEN2_PATTERN

# Published patterns, letter for letter; a step of the key is a pattern or the word "digits".
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
DIGITS = "digits"

# (steps, whether a word that is an entry skips the merges) → name
_SPLITTERS = {
    ((QWEN2_PATTERN,), False): "qwen2",
    ((GPT2_PATTERN,), False): "gpt-2",
    ((LLAMA3_PATTERN,), True): "llama-bpe",
    ((LLAMA3_PATTERN,), False): "smaug-bpe",
    ((DIGITS, GPT2_PATTERN), False): "smollm",
}


class Spacing(NamedTuple):
    """How a SentencePiece-style tokenizer treats spaces."""

    prefix: bool  # a space is put in front of a text
    always: bool  # even where there is one already, and after control tokens, as llama.cpp does


def splitter_name(raw: dict[str, Any]) -> str:
    """llama.cpp's name for the splitter of a byte-level tokenizer.json. Raises IntegrityError."""
    steps = tuple(_steps(raw.get("pre_tokenizer")))
    name = _SPLITTERS.get((steps, bool(raw["model"].get("ignore_merges"))))
    if name is None:
        raise IntegrityError(
            f"this tokenizer's way of splitting words ({' + '.join(steps)}) has no name"
            " in GGUF, so llama.cpp would cut words differently",
            hint="export with --to hf instead",
        )
    return name


def _steps(splitter: dict[str, Any] | None) -> list[str]:
    """The pieces of a pre-tokenizer that cut; what it does beside cutting must be the usual."""
    kind = None if splitter is None else splitter.get("type")
    if splitter is None or kind is None:
        return ["nothing"]
    if kind == "Sequence":
        parts = splitter["pretokenizers"]
        if parts and parts[-1].get("type") == "ByteLevel":
            return [step for part in parts for step in _steps(part)]
    elif kind == "Split" and splitter.get("behavior") == "Isolated" and not splitter.get("invert"):
        pattern = splitter["pattern"]
        return [str(pattern.get("Regex", pattern))]
    elif kind == "Digits" and splitter.get("individual_digits"):
        return [DIGITS]
    elif kind == "ByteLevel" and not splitter.get("add_prefix_space"):
        return [GPT2_PATTERN] if splitter.get("use_regex", True) else []
    return [f"a {kind} step"]


def composes_text(raw: dict[str, Any]) -> bool:
    """Whether a byte-level tokenizer brings text to Unicode's form NFC, which llama.cpp does not.

    Raises IntegrityError for any other normaliser.
    """
    kinds = [part.get("type") for part in _normalizers(raw)]
    _refuse_normalizer(next((kind for kind in kinds if kind != "NFC"), None))
    return bool(kinds)


def spacing(raw: dict[str, Any]) -> Spacing:
    """Of a SentencePiece-style tokenizer.json. Raises IntegrityError for what llama.cpp lacks."""
    prefix = replaces = False
    for part in _normalizers(raw):
        if part.get("type") == "Prepend" and part.get("prepend") == "▁":
            prefix = True
        elif part.get("type") == "Replace" and part.get("pattern") == {"String": " "}:
            replaces = part.get("content") == "▁"
        else:
            _refuse_normalizer(str(part.get("type")))
    splitter = raw.get("pre_tokenizer")
    if splitter is None and replaces:
        return Spacing(prefix, always=True)
    if not prefix and splitter is not None and splitter.get("type") == "Metaspace":
        _refuse_split(raw, splitter)
        default = "always" if splitter.get("add_prefix_space", True) else "never"
        scheme = splitter.get("prepend_scheme", default)
        return Spacing(scheme != "never", always=scheme == "never")
    raise IntegrityError(
        "this tokenizer treats spaces in a way that GGUF has no word for",
        hint="export with --to hf instead",
    )


def _refuse_split(raw: dict[str, Any], splitter: dict[str, Any]) -> None:
    """Cutting at spaces changes nothing unless an entry reaches across one."""
    if splitter.get("split", True):
        across = next((entry for entry in raw["model"]["vocab"] if "▁" in entry[1:]), None)
        if across is not None:
            raise IntegrityError(
                f"this tokenizer cuts text at spaces, but has the entry {across!r}: llama.cpp,"
                " which does not cut, would give other ids",
                hint="export with --to hf instead",
            )


def _normalizers(raw: dict[str, Any]) -> list[dict[str, Any]]:
    normalizer = raw.get("normalizer")
    if normalizer is None:
        return []
    if normalizer.get("type") == "Sequence":
        return list(normalizer["normalizers"])
    return [normalizer]


def _refuse_normalizer(kind: str | None) -> None:
    if kind is not None:
        raise IntegrityError(
            f"this tokenizer changes text before reading it ({kind}), which llama.cpp does not",
            hint="export with --to hf instead",
        )
