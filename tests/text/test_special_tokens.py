"""What the tokens of a family are for, from whichever file says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text.foreign import gpt2_like, llama2_like, llama3_like, write_tokenizer
from text.foreign_kinds import (
    opened,
    oracle,
)
from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.text.tokenizer import open_tokenizer


@pytest.mark.parametrize(
    ("kind", "stops", "end", "prefix"),
    [
        ("gpt2", ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>"),
        ("llama3", ["<|eot_id|>", "<|end_of_text|>"], "<|end_of_text|>", "<|begin_of_text|>"),
        ("smollm", ["<|im_end|>", "<|endoftext|>"], "<|endoftext|>", "<|endoftext|>"),
        ("qwen", ["<|im_end|>", "<|endoftext|>"], "<|endoftext|>", "<|endoftext|>"),
        ("llama2", ["</s>"], "</s>", "<s>"),
        ("mistral", ["</s>"], "</s>", "<s>"),
        ("zephyr", ["</s>"], "</s>", "<s>"),
        ("phi", ["<|endoftext|>", "<|end|>"], "<|endoftext|>", "<s>"),
        ("unigram", ["</s>"], "</s>", "<s>"),
    ],
)
def test_what_the_tokens_of_a_family_are_for(
    kind: str, stops: list[str], end: str, prefix: str
) -> None:
    tokenizer = opened(kind)
    assert tokenizer.stops == {tokenizer.controls[name] for name in stops}
    assert tokenizer.end_of_text == tokenizer.controls[end]
    assert tokenizer.text_prefix == (tokenizer.controls[prefix],)
    assert tokenizer.stops <= tokenizer.control_ids <= set(tokenizer.controls.values())
    assert hasattr(tokenizer, "turn_start") == (kind in ("smollm", "qwen"))


def test_stops_come_from_every_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, llama3_like(), eos_token={"content": "<|end_of_text|>"})
    number = open_tokenizer(tmp_path).controls
    reserved = number["<|reserved_special_token_0|>"]
    both = {number["<|end_of_text|>"], number["<|eot_id|>"]}
    assert open_tokenizer(tmp_path).stops == both
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [reserved, 2]}))
    assert open_tokenizer(tmp_path).stops == both | {reserved}, "id 2 is a letter here"
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": reserved}))
    assert open_tokenizer(tmp_path).stops == both | {reserved}
    assert open_tokenizer(tmp_path).end_of_text == number["<|end_of_text|>"]


def test_tokens_that_only_the_settings_call_special(tmp_path: Path) -> None:
    backend, config = llama2_like()
    content = json.loads(backend.to_str()) | {"added_tokens": [], "post_processor": None}
    bare = Backend.from_str(json.dumps(content))
    write_tokenizer(tmp_path, (bare, config))
    tokenizer, theirs = open_tokenizer(tmp_path), oracle(tmp_path)
    assert tokenizer.controls == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (tokenizer.end_of_text, tokenizer.text_prefix) == (2, (1,))
    whole = "<s>茶</s> tea"
    assert tokenizer.encode_marked([(whole, True)])[0] == theirs.encode(
        whole, add_special_tokens=False
    )
    assert not {0, 1, 2} & set(tokenizer.encode(whole))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"has no <\|endoftext\|> token, nor any other") as it:
        open_tokenizer(tmp_path)
    assert "\n" not in str(it.value)


def test_the_spellings_of_transformers_4_and_5(tmp_path: Path) -> None:
    backend, config = gpt2_like()
    config = {k: v for k, v in config.items() if not k.endswith("_token")}
    entry = backend.id_to_token(300)
    settings: list[dict[str, Any]] = [
        {"additional_special_tokens": [entry]},
        {"extra_special_tokens": [entry]},
        {"extra_special_tokens": {"image_token": entry}},
        {"additional_special_tokens": [{"__type": "AddedToken", "content": entry}]},
        {"added_tokens_decoder": {"300": {"content": entry, "special": True}}},
        {"cls_token": entry},
    ]
    for more in settings:
        write_tokenizer(tmp_path, (backend, config), **more)
        assert open_tokenizer(tmp_path).controls == {"<|endoftext|>": 512, entry: 300}, more
    write_tokenizer(tmp_path, (backend, config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"sep_token": entry}))
    assert 300 in open_tokenizer(tmp_path).control_ids
    assert open_tokenizer(tmp_path).settings["sep_token"] == entry
