"""A tokenizer as GGUF metadata (`tokenizer.*` of the GGUF specification, llama.cpp's reading)."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from chatbench.errors import IntegrityError
from chatbench.export.gguf_splitting import composes_text, spacing, splitter_name
from chatbench.text.template import CHAT_TEMPLATE
from chatbench.text.tokenizer import Tokenizer

Value = bool | int | float | str | list[str] | list[int] | list[float]

# Token types of llama.cpp (`enum llama_token_type`).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE_ENTRY = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary(NamedTuple):
    """`metadata` for the file; `name` of the splitter for people; `notices` on what differs."""

    metadata: dict[str, Value]
    name: str
    notices: list[str]


def describe_tokenizer(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """All `tokenizer.*` keys for a model whose embedding has `rows` rows.

    Raises IntegrityError where llama.cpp would give other ids than this tokenizer.
    """
    raw = json.loads(tokenizer.to_bytes())
    model = raw["model"]
    if model.get("type", "BPE") != "BPE" or any(
        model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")
    ):
        raise IntegrityError(
            f"a {model.get('type')} tokenizer cannot be written as GGUF",
            hint="export with --to hf instead",
        )
    pieces = model.get("byte_fallback", False)
    controls = tokenizer.control_ids
    described = (_sentence_pieces if pieces else _byte_level)(raw, controls, rows)
    stripping = [t["content"] for t in raw.get("added_tokens", ()) if t["lstrip"] or t["rstrip"]]
    if stripping:
        described.notices.append(
            f"llama.cpp keeps the spaces beside {' '.join(stripping)}, this tokenizer drops them"
        )
    described.metadata.update(_special_ids(tokenizer, raw))
    template = chat_template(tokenizer)
    if template is not None:
        described.metadata["tokenizer.chat_template"] = template
    return described


def chat_template(tokenizer: Tokenizer) -> str | None:
    """The Jinja text other programs render conversations with, if there is one.

    Raises UsageError for a template that was asked for by name and does not fit.
    """
    if tokenizer.is_native:
        return CHAT_TEMPLATE
    if tokenizer.files.given_template is None:
        return tokenizer.template_source
    return tokenizer.template.source


def _byte_level(raw: dict[str, Any], controls: frozenset[int], rows: int) -> Vocabulary:
    name = splitter_name(raw)
    tokens, types = _entries(raw, controls, rows)
    merges = [" ".join(pair) for pair in merge_pairs(raw)]
    notices = []
    if composes_text(raw):
        notices.append("llama.cpp does not compose characters (NFC): text that is not composed,"
                       " such as e + combining accent, gets other ids there")  # fmt: skip
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }
    return Vocabulary(metadata, name, notices)


def _sentence_pieces(raw: dict[str, Any], controls: frozenset[int], rows: int) -> Vocabulary:
    space = spacing(raw)
    tokens, types = _entries(raw, controls, rows)
    if types.count(BYTE) != 256:
        raise IntegrityError(
            f"this tokenizer has {types.count(BYTE)} of the 256 byte entries that llama.cpp needs",
            hint="export with --to hf instead",
        )
    scores = _scores(raw, controls, rows)
    notices = []
    if not space.always:
        notices.append("llama.cpp puts a space before every text and after control tokens, this"
                       " tokenizer only where there is none: some prompts get other ids"
                       " there")  # fmt: skip
    spelled = _mergeable_controls(raw, controls)
    if spelled:
        notices.append(f"llama.cpp reads {' '.join(spelled)} as control tokens even in plain text")
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": space.prefix,
    }
    return Vocabulary(metadata, "sentencepiece", notices)


def merge_pairs(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges in order; older files write a pair as one string."""
    merges = raw["model"]["merges"]
    return [(left, right) for left, right in (
        pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges
    )]  # fmt: skip


def _entries(
    raw: dict[str, Any], controls: frozenset[int], rows: int
) -> tuple[list[str], list[int]]:
    """Text and type of each id. Rows without an entry get a name that no text can spell."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    pieces = raw["model"].get("byte_fallback", False)
    for text, number in raw["model"]["vocab"].items():
        tokens[number] = text
        types[number] = BYTE if pieces and _BYTE_ENTRY.fullmatch(text) else NORMAL
    for added in raw.get("added_tokens", ()):
        # Looked for in text as it came, before spaces are spelled.
        tokens[added["id"]] = added["content"].replace("▁", " ") if pieces else added["content"]
        types[added["id"]] = USER_DEFINED
    # Text never becomes one of these, here or there.
    for number in controls:
        types[number] = CONTROL
    unknown = raw["model"].get("unk_token")
    if pieces and unknown in raw["model"]["vocab"]:
        types[raw["model"]["vocab"][unknown]] = UNKNOWN
    _refuse_twins(tokens)
    return tokens, types


def _refuse_twins(tokens: list[str]) -> None:
    seen: set[str] = set()
    for text in tokens:
        if text in seen:
            raise IntegrityError(
                f"two entries of this tokenizer are spelled {text!r}, which llama.cpp refuses",
                hint="export with --to hf instead",
            )
        seen.add(text)


def _scores(raw: dict[str, Any], controls: frozenset[int], rows: int) -> list[float]:
    """Scores by which llama.cpp, which knows entries and no merges, merges in the same order.

    It joins any two neighbours that spell an entry, best entry first. That is the same as going
    through the merges exactly when an entry's merges stand together and none is left out, as in
    everything converted from SentencePiece. Raises IntegrityError otherwise.
    """
    vocabulary = raw["model"]["vocab"]
    added = {token["id"] for token in raw.get("added_tokens", ())} | controls
    pairs = merge_pairs(raw)
    order: dict[str, int] = {}
    last = ""
    for left, right in pairs:
        made = left + right
        if made != last and made in order:
            _refuse_merges(made)
        order.setdefault(made, len(order))
        last = made
    known = set(pairs)
    ordinary = {entry for entry, number in vocabulary.items() if number not in added}
    for entry in ordinary:
        for cut in range(1, len(entry)):
            halves = entry[:cut], entry[cut:]
            if ordinary.issuperset(halves) and halves not in known:
                _refuse_merges(entry)
    scores = [-float(len(order))] * rows
    for entry, place in order.items():
        scores[vocabulary[entry]] = -float(place)
    return scores


def _refuse_merges(entry: str) -> None:
    raise IntegrityError(
        f"this tokenizer's merges for {entry!r} cannot be written as scores, so llama.cpp would"
        " give other ids",
        hint="export with --to hf instead",
    )


def _mergeable_controls(raw: dict[str, Any], controls: frozenset[int]) -> list[str]:
    vocabulary = raw["model"]["vocab"]
    return [
        entry
        for entry, number in vocabulary.items()
        if number in controls
        and any(
            entry[:cut] in vocabulary and entry[cut:] in vocabulary for cut in range(1, len(entry))
        )
    ]


def _special_ids(tokenizer: Tokenizer, raw: dict[str, Any]) -> dict[str, Value]:
    """What starts and ends texts and turns.

    Without them llama.cpp takes ids that fit Llama 2 and GPT-2, or goes by the spelling.
    """
    spelled = {number: text for text, number in tokenizer.controls.items()}
    eos = _named(tokenizer, raw, "eos_token", tokenizer.end_of_text)
    ends = sorted(
        tokenizer.stops - {tokenizer.end_of_text},
        key=lambda stop: (stop != eos, "eom" in spelled.get(stop, ""), stop),
    )
    adds_bos = _puts_token_first(raw) or tokenizer.settings.get("add_bos_token") is True
    bos = _named(tokenizer, raw, "bos_token", tokenizer.end_of_text)
    found: dict[str, Value] = {
        "tokenizer.ggml.bos_token_id": tokenizer.text_prefix[0] if adds_bos else bos,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.eot_token_id": (ends or [eos])[0],
        "tokenizer.ggml.add_bos_token": adds_bos,
        "tokenizer.ggml.add_eos_token": False,
    }
    if len(ends) > 1:
        found["tokenizer.ggml.eom_token_id"] = ends[1]
    for key, setting in (("unknown_token_id", "unk_token"), ("padding_token_id", "pad_token")):
        number = _named(tokenizer, raw, setting, -1)
        if number >= 0:
            found[f"tokenizer.ggml.{key}"] = number
    return found


def _named(tokenizer: Tokenizer, raw: dict[str, Any], setting: str, default: int) -> int:
    """The id of a token that tokenizer_config.json names."""
    written = tokenizer.settings.get(setting)
    text = written.get("content") if isinstance(written, dict) else written
    if not isinstance(text, str):
        return default
    number = tokenizer.controls.get(text, raw["model"]["vocab"].get(text))
    return default if number is None else int(number)


def _puts_token_first(raw: dict[str, Any]) -> bool:
    """Whether the post-processor puts a control token in front of a text."""
    processor = raw.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        single = part["single"] if part.get("type") == "TemplateProcessing" else []
        if single and "SpecialToken" in single[0]:
            return True
    return False
