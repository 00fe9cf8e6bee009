"""Which tokens of a tokenizer are control tokens, and what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from chatbench.errors import IntegrityError
from chatbench.text.splitting import byte_alphabet
from chatbench.text.template import END_OF_TEXT, TURN_END, TURN_START
from chatbench.text.tokenizer_files import NAMED, TokenizerFiles

CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# Tokens that end a turn and not a document, in the published families: ChatML; Llama 3 and 4
# (eom_id where a tool is to answer); Phi 3; Gemma; OpenChat; EXAONE; Command R.
TURN_ENDS = (
    TURN_END, "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<end_of_turn>",
    "<|end_of_turn|>", "[|endofturn|]", "<|END_OF_TURN_TOKEN|>",
)  # fmt: skip
# Tokens that end a document: GPT-2 and Qwen; Llama 3; Gemma; SentencePiece; DeepSeek.
DOCUMENT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>")
# Added tokens that are control tokens even where a file forgets to call them special.
KNOWN_MARKS = {
    *TURN_ENDS, *DOCUMENT_ENDS, TURN_START, "<|user|>", "<|assistant|>", "<|system|>",
    "<start_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]",
}  # fmt: skip


class SpecialTokens(NamedTuple):
    """The added tokens of a tokenizer.json with their flags, and the ids that control.

    Text never becomes one of `control_ids`, and `hidden` ones are not shown when ids become text.
    `stops` end a reply, `end_of_text` a document, and a plain text follows `text_prefix`.
    """

    added: list[dict[str, Any]]
    control_ids: frozenset[int]
    hidden: frozenset[int]
    stops: frozenset[int]
    end_of_text: int
    text_prefix: tuple[int, ...]


def find_special_tokens(
    content: Mapping[str, Any], vocab: Mapping[str, int], files: TokenizerFiles, native: bool
) -> SpecialTokens:
    """Sort the tokens of `content`, a parsed tokenizer.json with the ids `vocab`.

    Control tokens are those the files call special, those the chat template writes, and well-known
    marks of turns; other added tokens (runs of spaces, words added later) are text, and so are the
    unknown token and the entries of single bytes where texts need them. In a `native` tokenizer
    every added token controls. Raises IntegrityError when none can end a text.
    """
    added = _added_tokens(content, vocab, files)
    template = files.own_template or ""
    if files.given_template and "{" in files.given_template:
        template += files.given_template
    controls = {
        token["content"]: token["id"]
        for token in added
        if native or token["special"] or token["content"] in template
        or token["content"] in KNOWN_MARKS or token["id"] in files.stop_ids
    }  # fmt: skip
    # What a vocabulary writes for characters it lacks comes from text.
    of_bytes = _ids_of_bytes(content, vocab)
    needed = {_unknown_id(content, vocab), *of_bytes}
    controls = {name: number for name, number in controls.items() if number not in needed}
    stops = {controls[name] for name in TURN_ENDS if name in controls}
    # transformers gives a config without eos_token_id the ids of Llama 2; in another vocabulary
    # they are plain text, so only control tokens are believed.
    stops |= set(files.stop_ids) & set(controls.values())
    # The second is ours, of templates whose turns end in a token that no family has.
    ending = {files.token("eos_token"), files.token("eot_token")} & controls.keys()
    stops |= {controls[name] for name in ending}
    end = controls[_document_end(controls, files)]
    return SpecialTokens(
        added,
        frozenset(controls.values()),
        # As in transformers: marks of tool calls and of thinking are not special, and are shown.
        frozenset(t["id"] for t in added if native or t["special"]).difference(of_bytes),
        frozenset(stops | {end}),
        end,
        _text_prefix(content.get("post_processor"), controls, files) or (end,),
    )


def _unknown_id(content: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
    """The id of characters that the vocabulary cannot spell; None when it spells every byte."""
    model = content["model"]
    if _ids_of_bytes(content, vocab):
        return None
    found = vocab.get(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
    return None if found is None else int(found)


def _ids_of_bytes(content: Mapping[str, Any], vocab: Mapping[str, int]) -> list[int]:
    """The entries that spell single bytes, when there is one for every byte."""
    alphabet = list(byte_alphabet())
    if content["model"].get("byte_fallback"):
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    return [vocab[name] for name in alphabet] if vocab.keys() >= set(alphabet) else []


def _added_tokens(
    content: Mapping[str, Any], vocab: Mapping[str, int], files: TokenizerFiles
) -> list[dict[str, Any]]:
    """Those of tokenizer.json, and the entries that other files make special, as transformers
    adds them when it opens the folder."""
    special = {*files.special_tokens()}
    special |= {name for number, name in files.special_by_id().items() if vocab.get(name) == number}
    added = [
        token | {"id": vocab[token["content"]], "special": token["special"] or
                 token["content"] in special}
        for token in content["added_tokens"]
    ]  # fmt: skip
    known = {token["content"] for token in added}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    late = sorted((vocab[name], name) for name in special - known if name in vocab)
    return added + [{"id": n, "content": name, **flags, "special": True} for n, name in late]


def _document_end(controls: Mapping[str, int], files: TokenizerFiles) -> str:
    """An instructed model's eos often ends a turn; then its family's end of documents is sought."""
    eos = files.token("eos_token")
    if eos in controls and eos not in TURN_ENDS:
        return eos
    by_id = {number: name for name, number in controls.items()}
    named_by_id = [by_id[number] for number in files.stop_ids if number in by_id]
    candidates = [
        *DOCUMENT_ENDS,
        *(name for name in named_by_id if name not in TURN_ENDS),
        eos,
        *named_by_id,
        *(files.token(name) for name in NAMED),
    ]
    for name in candidates:
        if name in controls:
            return name
    raise IntegrityError(
        f"the tokenizer has no {END_OF_TEXT} token, nor any other that could end a text",
        hint="use a tokenizer trained by chatbench or that of a published model, with the files "
        "beside it",
    )


def _text_prefix(
    processor: Any, controls: Mapping[str, int], files: TokenizerFiles
) -> tuple[int, ...]:
    """What the files put before a text: the post-processor's tokens, or the bos_token they want."""
    before = [number for number in _put_before(processor) if number in controls.values()]
    bos = files.token("bos_token")
    if not before and files.settings.get("add_bos_token") is True and bos in controls:
        before = [controls[bos]]
    return tuple(before)


def _put_before(processor: Any) -> list[int]:
    """Ids of the special tokens before the text in a post_processor of tokenizer.json."""
    kind = processor["type"] if processor else None
    if kind == "Sequence":
        return [number for part in processor["processors"] for number in _put_before(part)]
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]]
    before: list[int] = []
    for piece in processor["single"] if kind == "TemplateProcessing" else ():
        if "SpecialToken" not in piece:
            break
        before += processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before
