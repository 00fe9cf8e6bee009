"""Small tokenizers in the manner of other model families, trained here on a bilingual text.

Each builder gives the backend and the `tokenizer_config.json` that is published beside its like.
The vocabularies are tiny; everything that decides how text is cut is as in the families' files:
normaliser, split pattern, model options, decoder, post-processor, flags of the added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from chatbench.text.splitting import QWEN2_PATTERN
from conftest import sample_texts

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENTRIES = 512
Built = tuple[Tokenizer, dict[str, Any]]


def gpt2_like() -> Built:
    """GPT-2: one token for everything, last in the vocabulary; no tokens for turns."""
    backend = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend, {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 1024,
    }


def llama3_like() -> Built:
    """Llama 3 Instruct: numbers in groups of three, words looked up whole before any merge."""
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = _byte_level(pre_tokenizers.Sequence([split, bytes_]), ignore_merges=True)
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
             "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")  # fmt: skip
    _add_special(backend, names)
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _begins_with(backend, "<|begin_of_text|>")]
    )
    return backend, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
    }


def smollm_like() -> Built:
    """SmolLM2 Instruct: digits alone; the special tokens are the first vocabulary entries."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")
    backend = _byte_level(pre_tokenizers.Sequence([digits, bytes_]), first=names)
    _add_special(backend, names)
    return backend, {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }


def qwen_like() -> Built:
    """Qwen 2.5 Instruct: NFC, single digits, and a few added tokens that are no special ones."""
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = _byte_level(pre_tokenizers.Sequence([split, bytes_]))
    backend.normalizer = normalizers.NFC()
    _add_special(backend, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"))
    backend.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>")]
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend, {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_start|>"],
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "model_max_length": 131072,
    }


def llama2_like() -> Built:
    """Llama 2: a SentencePiece BPE with byte fallback in the old manner, by normaliser.

    The class that its own configuration names would be built anew by transformers 5, in the new
    manner; the one here takes tokenizer.json as it is.
    """
    backend = _sentencepiece()
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.post_processor = _begins_with(backend, "<s>")
    config = _sentencepiece_config(legacy=False)
    return backend, config | {"tokenizer_class": "PreTrainedTokenizerFast"}


def mistral_like() -> Built:
    """Mistral: the same in the new manner, by Metaspace; `[INST]` is a control token as in v3."""
    backend = _sentencepiece(("[INST]", "[/INST]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.post_processor = _begins_with(backend, "<s>")
    return backend, _sentencepiece_config(legacy=False)


def zephyr_like() -> Built:
    """Zephyr and TinyLlama Chat: the old manner; the marks of the turns are ordinary text."""
    backend, config = llama2_like()
    return backend, config | {
        "legacy": True, "pad_token": "</s>", "padding_side": "left", "truncation_side": "left",
        "additional_special_tokens": ["<unk>", "<s>", "</s>"], "model_max_length": 2048,
    }  # fmt: skip


BUILDERS: dict[str, Callable[[], Built]] = {
    "gpt2": gpt2_like,
    "llama3": llama3_like,
    "smollm": smollm_like,
    "qwen": qwen_like,
    "llama2": llama2_like,
    "mistral": mistral_like,
    "zephyr": zephyr_like,
}


def write_tokenizer(folder: Path, built: Built, **settings: Any) -> Path:
    """tokenizer.json and tokenizer_config.json in `folder`, with more `settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    backend, config = built
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    text = json.dumps(config | settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return folder


def _add_special(backend: Tokenizer, names: tuple[str, ...]) -> None:
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])


def _begins_with(backend: Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B:1",
        special_tokens=[(token, backend.token_to_id(token))],
    )


def _byte_level(
    splitter: pre_tokenizers.PreTokenizer, first: tuple[str, ...] = (), **options: Any
) -> Tokenizer:
    entries, merges = _learned(splitter.__getstate__())
    vocab = {entry: number for number, entry in enumerate([*first, *entries])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), **options))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(more: tuple[str, ...] = ()) -> Tokenizer:
    entries, merges = _learned(None)
    control = ("<unk>", "<s>", "</s>", *more)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {entry: number for number, entry in enumerate([*control, *bytes_, *entries])}
    backend = Tokenizer(
        models.BPE(
            vocab=vocab, merges=list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_special(backend, control)
    return backend


def _sentencepiece_config(legacy: bool) -> dict[str, Any]:
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": legacy,
        "sp_model_kwargs": {},
        "model_max_length": 4096,
    }


@cache
def _learned(splitter: bytes | None) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Entries in the order of their ids, and merges, of a BPE over this split of the samples;
    without one over the words of SentencePiece."""
    backend = Tokenizer(models.BPE())
    trainer: dict[str, Any] = {"vocab_size": ENTRIES, "show_progress": False}
    if splitter is None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    else:
        # Any of our splitters will do: what is trained on is the same in all.
        backend.pre_tokenizer = _splitter_from(splitter)
        trainer["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(sample_texts(), trainers.BpeTrainer(**trainer))
    model = json.loads(backend.to_str())["model"]
    entries = sorted(model["vocab"], key=model["vocab"].get)
    return tuple(entries), tuple(tuple(pair) for pair in model["merges"])


def _splitter_from(state: bytes) -> pre_tokenizers.PreTokenizer:
    content = json.loads(Tokenizer(models.BPE()).to_str())
    content["pre_tokenizer"] = json.loads(state)
    return Tokenizer.from_str(json.dumps(content)).pre_tokenizer
