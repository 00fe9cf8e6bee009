"""What each entry of a vocabulary spells, for the kinds of tokenizers whose decoding is exact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from chatbench.errors import IntegrityError
from chatbench.text.splitting import byte_alphabet

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_HINT = "known: byte-level BPE, and BPE or Unigram in the manner of SentencePiece"


class Spelling(NamedTuple):
    """`entries[i]` are the bytes id i stands for, none for special tokens.

    At the beginning of a text, an id in `first` stands for other bytes, and up to `strip` spaces
    are dropped from the whole (the decoders of SentencePiece vocabularies take back the space
    that encoding puts before a text).
    """

    entries: list[bytes]
    first: dict[int, bytes]
    strip: int


class Decoder(Protocol):
    """Gives an entry's bytes anywhere, and at the beginning of a text."""

    strip: int

    def decode(self, token: str) -> tuple[bytes, bytes]: ...


def find_decoder(content: Mapping[str, Any]) -> Decoder:
    """How the tokenizer `content`, a parsed tokenizer.json, decodes.

    Raises IntegrityError, naming the part, for models and decoders that it does not know.
    """
    _require_known_model(content["model"])
    steps = _steps(content.get("decoder"))
    if not any(step["type"] == "ByteLevel" for step in steps):
        return _PieceDecoder(steps, content.get("decoder"))
    if {step["type"] for step in steps} - {"ByteLevel", "Fuse"}:
        raise _unknown("decoder", content["decoder"])
    return _ByteDecoder()


def spell(decoder: Decoder, vocab: Mapping[str, int], hidden: frozenset[int]) -> Spelling:
    """Every entry of `vocab`, decoded; `hidden` ones stand for nothing."""
    entries = [b""] * (max(vocab.values(), default=-1) + 1)
    first: dict[int, bytes] = {}
    for token, number in vocab.items():
        if number not in hidden:
            entries[number], beginning = decoder.decode(token)
            if beginning != entries[number]:
                first[number] = beginning
    return Spelling(entries, first, decoder.strip)


class _ByteDecoder:
    """GPT-2's alphabet of bytes."""

    strip = 0

    def __init__(self) -> None:
        self._alphabet = byte_alphabet()

    def decode(self, token: str) -> tuple[bytes, bytes]:
        try:
            data = bytes([self._alphabet[character] for character in token])
        except KeyError:
            # An added token may hold other characters, and then it is what it says.
            data = token.encode()
        return data, data


class _PieceDecoder:
    """The decoders of SentencePiece vocabularies."""

    def __init__(self, steps: list[dict[str, Any]], decoder: object) -> None:
        self.strip = 0
        self._replaced: list[tuple[str, str]] = []
        self._mark: str | None = None
        self._dropped_first = False
        self._fallback = False
        fused = False
        if not steps:
            raise _unknown("decoder", decoder)
        for step in steps:
            kind = step["type"]
            if kind == "Fuse":
                fused = True
            elif kind == "Strip" and fused and step["content"] == " " and not step["stop"]:
                self.strip += step["start"]
            elif fused or self._mark is not None:
                # What follows could look across the borders of entries.
                raise _unknown("decoder", decoder)
            elif kind == "Replace" and "String" in step["pattern"] and not self._fallback:
                self._replaced.append((step["pattern"]["String"], step["content"]))
            elif kind == "ByteFallback":
                self._fallback = True
            elif kind == "Metaspace":
                self._mark = step["replacement"]
                self._dropped_first = step.get("prepend_scheme", "always") != "never"
            else:
                raise _unknown("decoder", decoder)

    def decode(self, token: str) -> tuple[bytes, bytes]:
        for old, new in self._replaced:
            token = token.replace(old, new)
        byte = _BYTE.fullmatch(token) if self._fallback else None
        if byte is not None:
            return (bytes([int(byte[1], 16)]),) * 2
        if self._mark is None:
            return (token.encode(),) * 2
        return (
            token.replace(self._mark, " ").encode(),
            token.replace(self._mark, "" if self._dropped_first else " ").encode(),
        )


def _require_known_model(model: Mapping[str, Any]) -> None:
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type") not in ("BPE", "Unigram") or any(model.get(name) for name in affixes):
        raise _unknown("model", model)


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _unknown(part: str, found: Any) -> IntegrityError:
    if part == "model":
        what = f"is of kind {found.get('type')}"
        if found.get("type") == "BPE":
            what += " with marked beginnings or ends of words"
    else:
        names = " + ".join(step["type"] for step in _steps(found)) or "none"
        what = f"has the decoder {names}"
    return IntegrityError(
        f"the tokenizer {what}, which chatbench cannot turn back into text exactly", hint=_HINT
    )
