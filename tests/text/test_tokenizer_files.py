"""The files beside tokenizer.json, read with care and written back."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from text.foreign import gpt2_like, write_tokenizer
from text.foreign_kinds import (
    built,
    every_kind,
    harmless,
    oracle,
)

from chatbench.errors import IntegrityError
from chatbench.text.template import CHAT_TEMPLATE
from chatbench.text.tokenizer import Tokenizer, open_tokenizer


def test_where_the_chat_template_comes_from(tmp_path: Path) -> None:
    def source(given: str | None = None, **settings: Any) -> str | None:
        write_tokenizer(tmp_path, gpt2_like(), **settings)
        return open_tokenizer(tmp_path, given).template_source

    assert source() is None
    assert source(chat_template="{{ a }}") == "{{ a }}"
    named = [
        {"name": "tool_use", "template": "{{ t }}"},
        {"name": "default", "template": "{{ d }}"},
    ]
    assert source(chat_template=named) == "{{ d }}"
    assert source(chat_template=named[:1]) is None
    (tmp_path / "chat_template.jinja").write_text("{{ 茶 }}\n", encoding="utf-8")
    assert source(chat_template="{{ a }}") == "{{ 茶 }}\n"
    assert source("zephyr", chat_template="{{ a }}") == "zephyr"
    moved = (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert open_tokenizer(moved).template_source is None
    assert open_tokenizer(str(moved), "plain").template_source == "plain"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json",
                                  "special_tokens_map.json"])  # fmt: skip
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"null"]
)
def test_damaged_files_are_named(name: str, data: bytes, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, gpt2_like())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=name) as caught:
        open_tokenizer(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": 3}, {"eos_token": {"content": None}}, {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": 1, "1": {"content": 2, "special": True}}},
        {"additional_special_tokens": "x"}, {"extra_special_tokens": [None, 1]},
    ],
)  # fmt: skip
def test_settings_of_odd_types_are_passed_over(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = open_tokenizer(write_tokenizer(tmp_path, gpt2_like(), **settings))
    assert tokenizer.controls == {"<|endoftext|>": 512}


def test_what_is_no_file_or_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path, gpt2_like())
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja is not a regular file"):
        open_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IntegrityError, match=r"config\.json is not a regular file"):
        open_tokenizer(tmp_path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja is not UTF-8"):
        open_tokenizer(tmp_path)
    with open(tmp_path / "chat_template.jinja", "wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja is larger than"):
        open_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    write_tokenizer(tmp_path, gpt2_like(), chat_template={"a": 1})
    with pytest.raises(IntegrityError, match="chat_template is neither"):
        open_tokenizer(tmp_path)


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}茶"


@every_kind
@pytest.mark.parametrize("place", ["key", "file"])
def test_a_saved_tokenizer_is_the_one_that_was_read(
    kind: str, place: str, tmp_path: Path, rng: random.Random
) -> None:
    more = {"chat_template": TEMPLATE, "my_own": {"a": [1]}}
    first = write_tokenizer(tmp_path / "first", built(kind), **more)
    if place == "file":
        (first / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    opened = open_tokenizer(first)
    opened.save(tmp_path / "second", context=64)
    again = open_tokenizer(tmp_path / "second")
    assert again.digest == opened.digest
    assert again.template_source == opened.template_source == TEMPLATE
    assert (again.stops, again.control_ids, again.text_prefix) == (
        opened.stops, opened.control_ids, opened.text_prefix
    )  # fmt: skip
    kept = {k: v for k, v in opened.settings.items() if k != "chat_template"}
    assert {"model_max_length": 64} | kept == again.settings
    before, after = oracle(first), oracle(tmp_path / "second")
    said = [{"role": "user", "content": "茶?"}]
    assert after.apply_chat_template(said, tokenize=False) == before.apply_chat_template(
        said, tokenize=False
    )
    assert type(after) is type(before)
    for text in (harmless(rng) for _ in range(20)):
        text += rng.choice(list(opened.controls))
        assert after.encode(text) == before.encode(text)


def test_a_bare_tokenizer_is_saved_with_settings_that_transformers_needs(tmp_path: Path) -> None:
    tokenizer = Tokenizer(gpt2_like()[0])
    tokenizer.save(tmp_path, context=32)
    theirs = oracle(tmp_path)
    assert (theirs.eos_token, theirs.model_max_length) == ("<|endoftext|>", 32)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert theirs.encode("the shop 茶") == tokenizer.encode("the shop 茶")


def test_chatml_tokens_without_a_template_are_ours(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, built("qwen"))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.is_native
    assert tokenizer.control_ids == set(tokenizer.controls.values())
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert oracle(tmp_path / "saved").eos_token == "<|im_end|>"
    assert not open_tokenizer(write_tokenizer(tmp_path, built("qwen"), chat_template="x")).is_native
