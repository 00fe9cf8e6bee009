"""Well-known models: opened with the published number of parameters, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model.published import OPENED, REFUSED

from chatbench.errors import IntegrityError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import read_config
from chatbench.model.transformer import GPT


@pytest.mark.parametrize("name", OPENED)
def test_a_published_config_gives_the_published_number_of_parameters(
    tmp_path: Path, name: str
) -> None:
    raw, count = OPENED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    config = read_config(tmp_path)
    with torch.device("meta"):
        assert GPT(config).parameter_count() == count
    # What is written says the same again.
    assert (
        ARCHITECTURES[config.model_type].read(ARCHITECTURES[config.model_type].write(config))
        == config
    )


@pytest.mark.parametrize("name", OPENED)
def test_transformers_reads_the_same_numbers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    raw, _ = OPENED[name]
    ours = ARCHITECTURES[raw["model_type"]].read(json.loads(json.dumps(raw)))
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert (ours.hidden_size, ours.n_layers, ours.n_heads, ours.vocab_size) == (
        theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads,
        theirs.vocab_size,
    )  # fmt: skip
    window = getattr(theirs, "sliding_window", None)
    assert ours.context == min(theirs.max_position_embeddings, window or 1 << 30)
    if ours.positions == "rotary":
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert (ours.rope.kind if ours.rope else "default") == theirs.rope_parameters["rope_type"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw, word = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(IntegrityError) as caught:
        read_config(tmp_path)
    said = f"{caught.value.message} {caught.value.hint}"
    assert word in said
    assert str(tmp_path) in said
