"""A model of classes in its folder: what transformers reads is what we wrote."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.config import Pooling
from chatbench.model.folder import open_model, read_config, stored_weights, write_model
from chatbench.model.labels import labels_of, read_causal, read_labels, read_pooling
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.storage import new_folder
from chatbench.text.tokenizer import Tokenizer

LABELS = ("card arrival", "退款", "1")
Family = Callable[..., ModelConfig]
Build = Callable[[ModelConfig], GPT]


def written(folder: Path, model: GPT, tokenizer: Tokenizer) -> Path:
    with new_folder(folder, "model") as place:
        write_model(place, model.config, stored_weights(model), tokenizer)
    return folder


@pytest.fixture
def classifier(
    random_family: Family, random_model: Build, tokenizer: Tokenizer, rng: random.Random
) -> Callable[[str], GPT]:
    """A random classifier of a family, for the tokenizer of the tests."""

    def make(name: str) -> GPT:
        tied = rng.random() < 0.5
        model = random_model(
            random_family(name, vocab_size=tokenizer.vocab_size, tie_embeddings=tied)
        )
        model.become_classifier(LABELS)
        assert not model.score.weight.any()
        with torch.no_grad():
            draw = torch.Generator().manual_seed(rng.randrange(1 << 32))
            model.score.weight.normal_(generator=draw)
        return model

    return make


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@torch.no_grad()
def test_transformers_classifies_as_we_do(
    name: str, classifier: Callable[[str], GPT], tokenizer: Tokenizer, tmp_path: Path,
    rng: random.Random,
) -> None:  # fmt: skip
    transformers = pytest.importorskip("transformers")
    model = classifier(name)
    folder = written(tmp_path / "model", model, tokenizer)
    twin, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert twin.config.id2label == dict(enumerate(LABELS))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["Where is my card?", "退款要多久", "a", "tea and 茶叶 " * rng.randrange(2, 9)]
    batch = theirs(texts, padding=True, padding_side="right", return_tensors="pt")
    batch.pop("token_type_ids", None)
    opened = open_model(folder, torch.device("cpu"), classifier=True)
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text)
        assert batch["input_ids"][row][: len(ids)].tolist() == ids
        ours = opened.model.logits(opened.model(torch.tensor([ids])))[0, -1]
        found = twin.eval()(**batch).logits[row]
        # Of order one and computed twice in float32; another token or layout would be far off.
        torch.testing.assert_close(ours, found, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_folder_gives_back_labels_and_weights(
    name: str, classifier: Callable[[str], GPT], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = classifier(name)
    folder = written(tmp_path / "model", model, tokenizer)
    assert read_config(folder) == model.config
    assert labels_of(folder) == LABELS
    again = stored_weights(open_model(folder, torch.device("cpu"), classifier=True).model)
    before = stored_weights(model)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key], before[key]) for key in before)
    assert not any("lm_head" in key for key in before)


def test_what_a_head_sees_is_kept_with_it(
    random_family: Family, random_model: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kept = []
    pooling: Pooling
    for pooling, causal in (("last", True), ("mean", True), ("mean", False)):
        model = random_model(random_family("llama", vocab_size=tokenizer.vocab_size))
        model.become_classifier(LABELS, pooling, causal=causal)
        folder = written(tmp_path / f"{pooling} {causal}", model, tokenizer)
        assert read_config(folder) == model.config
        opened = open_model(folder, torch.device("cpu"), classifier=True).model
        assert (opened.config.pooling, opened.config.causal) == (pooling, causal)
        ids = torch.randint(tokenizer.vocab_size, (2, 9))
        with torch.no_grad():
            assert torch.equal(opened(ids), model(ids))
            changed = torch.cat([ids[:, :-1], 1 - ids[:, -1:].clamp(max=1)], 1)
            looks_ahead = not torch.allclose(opened(ids)[:, 0], opened(changed)[:, 0])
        assert looks_ahead != causal
        kept.append(json.loads((folder / "config.json").read_text("utf-8")))
    # Folders from before there was a choice say nothing.
    assert not {"classifier_pooling", "use_bidirectional_attention"} & kept[0].keys()
    of_text = {**kept[2], "architectures": ["LlamaForCausalLM"]}
    assert read_pooling(of_text) == "last"
    assert read_causal(of_text)
    for wrong in ("max", 3, None, ["mean"]):
        with pytest.raises(IntegrityError, match="classifier_pooling"):
            read_pooling({**kept[2], "classifier_pooling": wrong})
    with pytest.raises(IntegrityError, match="true or false"):
        read_causal({**kept[2], "use_bidirectional_attention": "vision"})
    with pytest.raises(UsageError, match="reads both ways"):
        model.config._replace(pooling="last").check()


def test_transformers_says_that_it_does_not_know_a_head_on_the_mean(
    random_family: Family, random_model: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(random_family("llama", vocab_size=tokenizer.vocab_size))
    model.become_classifier(LABELS, "mean")
    folder = written(tmp_path / "model", model, tokenizer)
    _, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert set(told["missing_keys"]) == {"score.weight"}
    assert set(told["unexpected_keys"]) == {"score_of_mean.weight"}


def test_a_classifier_is_not_opened_to_talk(
    classifier: Callable[[str], GPT], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", classifier("llama"), tokenizer)
    with pytest.raises(UsageError, match="chatbench classify"):
        open_model(folder, torch.device("cpu"))


def test_labels_beside_a_language_model_mean_nothing(base_run: Path, tmp_path: Path) -> None:
    raw: dict[str, Any] = json.loads((base_run / "model" / "config.json").read_text("utf-8"))
    assert read_labels({**raw, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == ()
    assert labels_of(base_run) == ()
    assert labels_of(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "a"}},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {"0": "a", "1": 7}},
        {"id2label": ["a", "b"]},
        {"id2label": None},
        {"id2label": {"0": "a", "1": "b"}, "problem_type": "regression"},
        {"id2label": {"0": "a", "1": "b"}, "problem_type": ["x"]},
    ],
)
def test_what_names_no_classes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        read_labels({"architectures": ["LlamaForSequenceClassification"], **changes})


def test_two_classes_go_without_names() -> None:
    raw = {"architectures": ["LlamaForSequenceClassification"]}
    assert read_labels(raw) == ("LABEL_0", "LABEL_1")


def test_a_head_of_one_class_or_of_equal_ones_is_refused(random_config: Family) -> None:
    for labels in (("a",), ("a", "b", "a")):
        with pytest.raises(UsageError, match="two or more"):
            random_config(labels=labels).check()
