"""A chat model of another family, saved by transformers: finetuned, judged and talked to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text.foreign import llama3_like, write_tokenizer

from chatbench.chat.start import chat
from chatbench.conversation import Message, parse_messages
from chatbench.corpus.shards import open_corpus
from chatbench.errors import DataError, UsageError
from chatbench.evaluate.run import evaluate
from chatbench.model.folder import find_model
from chatbench.settings import (
    ChatSettings,
    EvaluateSettings,
    FinetuneSettings,
    SamplingSettings,
    TrainSettings,
)
from chatbench.text.template import render, reply_prompt
from chatbench.text.tokenizer import open_tokenizer
from chatbench.train.recipes import finetune
from conftest import chatbench, sample_chats, sample_texts, write_jsonl

CONTEXT = 160
TEMPLATE = """\
{% for m in messages %}
{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim %}
{{- (bos_token if loop.first else '') + text + '<|eot_id|>' -}}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{% endif %}
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    backend, config = llama3_like()
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=backend.get_vocab_size(), hidden_size=32, intermediate_size=48,
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=CONTEXT, tie_word_embeddings=False,
                bos_token_id=backend.token_to_id("<|begin_of_text|>"),
                eos_token_id=backend.token_to_id("<|eot_id|>"),
            )
        )  # fmt: skip
        model.save_pretrained(folder)
    write_tokenizer(folder, (backend, config), chat_template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "chats.jsonl", sample_chats())


@pytest.fixture(scope="module")
def tuned(foreign: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bot"
    done = chatbench(
        "finetune", "-m", foreign, "-d", chats, "-o", out, "--steps", "3", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    return out


def test_finetuning_learns_from_the_models_own_format(tuned: Path) -> None:
    corpus = open_corpus(tuned / "corpus")
    assert corpus.tokenizer.template_source == TEMPLATE
    start = corpus.tokenizer.controls["<|begin_of_text|>"]
    end = corpus.tokenizer.controls["<|eot_id|>"]
    split = corpus.split("train")
    for number in range(len(split)):
        ids, weights = split.ids(number), split.weights(number)
        assert ids[0] == start
        assert weights.sum() > 0
        assert ids[-1] == end
        assert weights[-1] == 1


def test_what_was_finetuned_opens_elsewhere_with_its_template(tuned: Path, foreign: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = find_model(tuned)
    ours = open_tokenizer(folder)
    messages = sample_chats(4)[3]["messages"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert model.config.model_type == "llama"
    assert render(ours, parse_messages(messages)).ids == ids
    assert open_tokenizer(foreign).digest == ours.digest


def test_chat_and_jsonl(tuned: Path, cli: Callable[..., Any]) -> None:
    talk = ("-p", "茶多少钱？", "--max-tokens", "8", "--temp", "0")
    said = cli("chat", "-m", tuned, *talk, "--device", "cpu")
    assert said.returncode == 0, said.stderr
    lines = [
        {"prompt": "茶多少钱？", "temperature": 0, "max_tokens": 8},
        {"messages": [{"role": "user", "content": "<|eot_id|> Hi"}], "max_tokens": 3},
    ]
    asked = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    answered = cli("chat", "-m", tuned, "--jsonl", "--device", "cpu", input=asked)
    assert answered.returncode == 0, answered.stderr
    rows = [json.loads(line) for line in answered.stdout.splitlines()]
    assert rows[0]["text"].strip() == said.stdout.strip()
    tokenizer = open_tokenizer(tuned / "corpus" / "tokenizer")
    prompt = reply_prompt(tokenizer, [Message("user", "茶多少钱？")])
    assert rows[0]["usage"]["prompt_tokens"] == len(prompt)


def test_evaluate(foreign: Path, tuned: Path, chats: Path, cli: Callable[..., Any]) -> None:
    limits = ("--max-examples", "2", "--max-tokens", "4", "--json", "--device", "cpu")
    judged = cli("evaluate", "-m", tuned, "-d", chats, *limits)
    assert judged.returncode == 0, judged.stderr
    found = {score["name"]: score for score in json.loads(judged.stdout)["scores"]}["perplexity"]
    tokenizer = open_tokenizer(foreign)
    conversations = [parse_messages(row["messages"]) for row in sample_chats()]
    assert found["n"] == sum(sum(render(tokenizer, messages).weights) for messages in conversations)
    before = evaluate(
        EvaluateSettings(
            model=str(foreign), data=str(chats), max_examples=1, max_tokens=1, device="cpu"
        )
    )
    assert found["value"] < {score.name: score.value for score in before.scores}["perplexity"]


def test_evaluate_leaves_out_what_the_template_does_not_take(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = tmp_path / "strict.jinja"
    refuse = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    strict.write_text(TEMPLATE.replace("{% set text", refuse + "{% set text"), encoding="utf-8")
    good = {"messages": sample_chats(1)[0]["messages"]}
    question, reply = good["messages"][:2]
    bad = {"messages": [question, {"role": "tool", "content": "五点"}, reply]}

    def judge(name: str, *rows: dict[str, Any]) -> Any:
        data = write_jsonl(tmp_path / name, list(rows))
        return evaluate(
            EvaluateSettings(
                model=str(foreign), data=str(data), template=str(strict), max_tokens=2,
                device="cpu",
            )
        )  # fmt: skip

    alone, mixed = judge("good.jsonl", good), judge("mixed.jsonl", good, bad)
    assert (alone.failed, mixed.failed) == (0, 1)
    assert mixed.scores == alone.scores
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 conversations were left out" in told
    assert "mixed.jsonl:2: the chat template does not take the turns" in told
    assert "no tools" in told
    with pytest.raises(DataError, match="nothing to judge by"):
        judge("bad.jsonl", bad)


def test_a_corpus_in_another_template_is_no_measure(
    tuned: Path, foreign: Path, tmp_path: Path
) -> None:
    settings = EvaluateSettings(
        model=str(foreign), data=str(tuned / "corpus"), split="train", template="llama3",
        max_examples=1, max_tokens=1, device="cpu",
    )  # fmt: skip
    with pytest.raises(UsageError, match="another chat template"):
        evaluate(settings)
    settings.template = None
    assert evaluate(settings).scores


@pytest.fixture
def bare(foreign: Path, tmp_path: Path) -> Path:
    """The model without its template."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in foreign.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return write_tokenizer(folder, llama3_like())


def test_what_a_conversation_cannot_be_is_one_line(
    bare: Path, foreign: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.jinja"
    loop = "{% for a in range(100000) %}"
    bomb.write_text(loop * 3 + "{% endfor %}" * 3, encoding="utf-8")
    for arguments, code, words in (
        ((bare, "-p", "你好"), 2, "no chat template; give --template"),
        ((bare, "--jsonl"), 2, "no chat template; give --template"),
        ((foreign, "-p", "你好", "--template", bomb), 4, "works longer"),
    ):
        asked = json.dumps({"prompt": "你好"}) + "\n"
        done = cli("chat", "-m", *arguments, "--device", "cpu", input=asked)
        assert done.returncode == code, done.stderr
        assert words in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not done.stdout


def test_without_a_template_there_are_texts_and_templates_by_name(
    bare: Path, chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no chat template"):
        finetune(FinetuneSettings(model=str(bare), data=str(chats), out=str(out), device="cpu"))
    assert not out.exists()
    with pytest.raises(UsageError, match="no <s>"):
        chat(ChatSettings(model=str(bare), prompt="Hi", template="mistral", device="cpu"))
    short = SamplingSettings(max_tokens=3, temperature=0.0)
    for settings in (
        ChatSettings(model=str(bare), prompt="The", raw=True, device="cpu", sampling=short),
        ChatSettings(model=str(bare), prompt="茶", template="plain", device="cpu", sampling=short),
    ):
        assert chat(settings) == 0
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sample_texts(6)])
    judged = evaluate(EvaluateSettings(model=str(bare), data=str(texts), device="cpu"))
    assert judged.scores[0].name == "perplexity"
    tuned = finetune(
        FinetuneSettings(
            model=str(bare), data=str(chats), out=str(out), template="plain", device="cpu",
            train=TrainSettings(steps=1, tensorboard=False),
        )
    )  # fmt: skip
    assert open_tokenizer(tuned / "corpus" / "tokenizer").template.source.count("Assistant:") == 1
