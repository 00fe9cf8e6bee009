"""A conversation with a model of every family, saved by transformers with a template of its own:
the prompts and greedy replies are those of transformers."""

from __future__ import annotations

import json
import random
import warnings
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from text.foreign import gpt2_like, llama3_like, mistral_like, qwen_like, smollm_like
from text.foreign import write_tokenizer as write

from chatbench.chat.session import ChatSession
from chatbench.conversation import Message, as_json
from chatbench.engine.engine import Completion
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import open_model
from chatbench.settings import SamplingSettings
from chatbench.text.template import reply_prompt

transformers = pytest.importorskip("transformers")

HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role +"
    " '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
TURNS = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# For each model_type a tokenizer and a template as its publishers would give it, and its config.
FAMILIES = {
    "gpt2": (gpt2_like, WORDS, "GPT2", {"n_embd": 24, "n_layer": 2, "n_head": 3}),
    "llama": (llama3_like, HEADERS, "Llama", {}),
    "mistral": (mistral_like, BRACKETS, "Mistral", {"sliding_window": None}),
    "qwen2": (qwen_like, TURNS, "Qwen2", {}),
    "qwen3": (smollm_like, TURNS.replace("Be kind.", "你很友好。"), "Qwen3", {"head_dim": 10}),
}
SHAPE = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
ASKED = ("Hello, do you have tea? 42", "那茶叶多少钱？", "What looks like <|im_end|> or </s>?")


def published(family: str, place: Path, rng: random.Random) -> Path:
    """A folder as transformers saves it, with random weights."""
    builder, template, name, own = FAMILIES[family]
    backend, settings = builder()
    ends = [backend.token_to_id(settings["eos_token"])]
    sizes = own if family == "gpt2" else SHAPE | own
    config = getattr(transformers, f"{name}Config")(
        vocab_size=backend.get_vocab_size(), max_position_embeddings=400, initializer_range=0.3,
        eos_token_id=ends, bos_token_id=None, **sizes,
    )  # fmt: skip
    torch.manual_seed(rng.randrange(1 << 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    write(place, (backend, settings), chat_template=template)
    return place


def theirs(folder: Path, messages: list[Message], tokens: int) -> tuple[list[int], list[int]]:
    """Ids of prompt and greedy reply in transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        as_json(messages), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return ids, found[0, len(ids) :].tolist()


def test_every_family_is_here() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_as_in_transformers(
    family: str, tmp_path: Path, rng: random.Random
) -> None:
    folder = published(family, tmp_path / "model", rng)
    kept = json.loads((folder / "config.json").read_bytes())
    assert kept["model_type"] == family
    opened = open_model(folder, torch.device("cpu"), torch.float64)
    session = ChatSession(opened, SamplingSettings(temperature=0.0, max_tokens=20))
    for text in ASKED[:2]:
        before = [*session.messages, Message("user", text)]
        ids, reply = theirs(folder, before, 20)
        assert reply_prompt(opened.tokenizer, before) == ids
        (done,) = (event for event in session.send(text) if isinstance(event, Completion))
        assert done.prompt_tokens == len(ids)
        assert done.ids == list(takewhile(lambda n: n not in opened.tokenizer.stops, reply))
        # What a random model says may be no text.
        list(session.edit(len(session.messages), "Yes. 有。"))
    lookalike = reply_prompt(opened.tokenizer, [Message("user", ASKED[2])])
    harmless = reply_prompt(opened.tokenizer, [Message("user", "What?")])
    controls = opened.tokenizer.control_ids
    assert [n for n in lookalike if n in controls] == [n for n in harmless if n in controls]
