"""Finetunes in a template whose control tokens the base lacks: what is written, who reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from train.test_adapter_runs import logits_of, lora, rows_of, settings

from chatbench.cli import run as program
from chatbench.conversation import exchange
from chatbench.corpus.shards import open_corpus
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.folder import open_model, stored_weights
from chatbench.model.lora import load_adapter
from chatbench.text.chat_templates import TOKENS
from chatbench.text.template import render
from chatbench.train.forgetting import probe_of, read_probed
from chatbench.train.policy import Start
from chatbench.train.recipes import finetune
from conftest import sample_chats, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
CPU = torch.device("cpu")
TEMPLATE = "llama3"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("chats") / "chats.jsonl", sample_chats())


@pytest.fixture(scope="module")
def bot(base_run: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an adapter with new tokens."""
    out = tmp_path_factory.mktemp("runs") / "bot"
    done = finetune(settings(base_run, chats, out, lora=lora(), template=TEMPLATE))
    assert done is not None
    return done


def size_of(base: Path) -> int:
    return open_model(base, CPU).model.config.vocab_size


@pytest.fixture
def ids(bot: Path, base_run: Path, rng: random.Random) -> torch.Tensor:
    size = size_of(base_run)
    new = range(size, size + len(TOKENS[TEMPLATE]))
    rows = [[rng.randrange(size) for _ in range(20)] + [*new] for _ in range(2)]
    return torch.tensor([rng.sample(row, len(row)) for row in rows])


def test_the_rows_of_new_tokens_learn_and_go_with_the_adapter(bot: Path, base_run: Path) -> None:
    base, opened = open_model(base_run, CPU), open_model(bot, CPU)
    size = base.model.config.vocab_size
    new = [*range(size, size + len(TOKENS[TEMPLATE]))]
    assert [opened.tokenizer.controls[name] for name in TOKENS[TEMPLATE]] == new
    said = json.loads((bot / "model" / "adapter_config.json").read_bytes())
    assert said["trainable_token_indices"] == new
    before, after = (stored_weights(each.model)[EMBEDDING] for each in (base, opened))
    assert torch.equal(after[:size], before)
    mean = before.double().mean(0).float()
    assert after.shape[0] == size + len(new)
    assert all(not torch.equal(after[number], mean) for number in new)
    losses = [row["val_loss"] for row in rows_of(bot) if "val_loss" in row]
    assert losses[-1] < losses[0]


def test_it_was_trained_on_what_chat_will_write(bot: Path) -> None:
    opened = open_model(bot, CPU)
    turns = exchange("茶多少钱？", "Five yuan.")
    found = render(opened.tokenizer, turns)
    end = opened.tokenizer.controls["<|eot_id|>"]
    assert found.ids[-1] == end
    assert found.weights[-1] == 1
    assert end in opened.tokenizer.stops
    corpus = open_corpus(bot / "corpus")
    assert corpus.tokenizer.digest == opened.tokenizer.digest
    assert end in corpus.split("train").ids(0).tolist()


def test_peft_opens_it_and_gives_the_same_logits(bot: Path, ids: torch.Tensor) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(bot / "model").eval()
    with torch.no_grad():
        wanted = theirs(ids).logits
    torch.testing.assert_close(
        logits_of(bot, ids), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max())
    )


def test_the_other_verbs_read_it(
    bot: Path, chats: Path, ids: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain"
    assert program(["export", "-m", str(bot), "--to", "hf", "-o", str(out)]) == 0
    assert torch.equal(logits_of(out, ids), logits_of(bot, ids))
    assert open_model(out, CPU).tokenizer.digest == open_model(bot, CPU).tokenizer.digest
    words = ["-p", "茶叶3号多少钱？", "--max-tokens", "3", "--device", "cpu"]
    assert program(["chat", "-m", str(bot), *words]) == 0
    words += ["--quantize", "int8"]
    assert program(["chat", "-m", str(bot), *words]) == 0
    capsys.readouterr()
    limits = ["--max-examples", "1", "--max-tokens", "2", "--json", "--device", "cpu"]
    assert program(["evaluate", "-m", str(bot), "-d", str(chats), *limits]) == 0
    found = {s["name"]: s["value"] for s in json.loads(capsys.readouterr().out)["scores"]}
    assert 1 < found["perplexity"] < size_of(bot)


def test_gguf_holds_the_new_tokens(bot: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "bot.gguf"
    assert program(["export", "-m", str(bot), "--to", "gguf", "-o", str(out)]) == 0
    reader = gguf.GGUFReader(out)
    names = [
        bytes(reader.fields["tokenizer.ggml.tokens"].parts[i]).decode()
        for i in reader.fields["tokenizer.ggml.tokens"].data
    ]
    assert names[-len(TOKENS[TEMPLATE]) :] == [*TOKENS[TEMPLATE]]
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    assert table.shape[1] == len(names)


def test_everything_learns_and_is_saved_whole(
    base_run: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(settings(base_run, chats, tmp_path / "run", template=TEMPLATE))
    assert run is not None
    assert "4 control tokens are new to the model: <|begin_of_text|>" in " ".join(
        capsys.readouterr().err.split()
    )
    opened = open_model(run, CPU)
    assert opened.model.config.vocab_size == size_of(base_run) + 4
    # The same again needs nothing new.
    more = finetune(settings(run, chats, tmp_path / "more", template=TEMPLATE, train={"steps": 1}))
    assert more is not None
    assert size_of(more) == opened.model.config.vocab_size
    assert "new to the model" not in capsys.readouterr().err


def test_over_quantised_weights(
    base_run: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(
        settings(base_run, chats, tmp_path / "r", lora=lora(), quantize="int8", template="zephyr")
    )
    assert run is not None
    opened = open_model(run, CPU)
    assert opened.tokenizer.controls["</s>"] == size_of(base_run)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 control token is new to the model: </s>" in said
    assert "int8 and 1 new token, " in said
    assert opened.tokenizer.controls["</s>"] in opened.tokenizer.stops
    losses = [row["val_loss"] for row in rows_of(run) if "val_loss" in row]
    assert losses[-1] < losses[0]


def test_blocks_alone_could_not_learn_them(base_run: Path, chats: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 4 control tokens.*--train-layers.*--lora-rank"):
        finetune(settings(base_run, chats, tmp_path / "r", train_layers=1, template=TEMPLATE))
    assert not (tmp_path / "r").exists()


def test_a_corpus_made_before_fits(base_run: Path, chats: Path, tmp_path: Path) -> None:
    made = tmp_path / "corpus"
    words = ["--tokenizer", str(base_run), "--template", TEMPLATE, "-o", str(made)]
    assert program(["preprocess", str(chats), *words]) == 0
    assert open_corpus(made).tokenizer.vocab_size == size_of(base_run) + 4
    given: Any = {"lora": lora(), "train": {"steps": 1}}
    assert finetune(settings(base_run, made, tmp_path / "r", template=TEMPLATE, **given))
    with pytest.raises(IntegrityError) as lacking:
        finetune(settings(base_run, made, tmp_path / "other", **given))
    assert "another tokenizer" in lacking.value.message
    assert f"finetune with --template {TEMPLATE}" in str(lacking.value.hint)


def test_a_corpus_without_them_is_refused_with_the_words_that_make_one(
    base_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError) as lacking:
        finetune(settings(base_run, corpus_folder, tmp_path / "r", template=TEMPLATE))
    assert f"--tokenizer {base_run} --template {TEMPLATE}" in str(lacking.value.hint)


@pytest.mark.parametrize("named", [False, True])
def test_what_it_forgets_is_measured_in_the_ids_of_the_base(
    base_run: Path, chats: Path, corpus_folder: Path, tmp_path: Path, named: bool
) -> None:
    given: Any = {"probe": str(corpus_folder)} if named else {}
    train = {"steps": 1}
    plain = finetune(settings(base_run, chats, tmp_path / "plain", train=train, **given))
    run = finetune(
        settings(base_run, chats, tmp_path / "r", template=TEMPLATE, train=train, **given)
    )
    assert plain is not None
    assert run is not None
    wanted, found = read_probed(plain), read_probed(run)
    assert wanted is not None
    assert found is not None
    assert (found.source, found.tokens) == (wanted.source, wanted.tokens)
    # Four tokens as likely as the mean one take a little of what the others had.
    assert wanted.before < found.before < wanted.before + 0.2


def test_only_texts_of_the_base_can_be_replayed_beside_new_tokens(
    base_run: Path, corpus_folder: Path, chats: Path, bot: Path, tmp_path: Path
) -> None:
    corpus, folder = open_corpus(bot / "corpus"), open_model(base_run, CPU).folder
    given = settings(base_run, chats, tmp_path / "r", template=TEMPLATE)
    probe = probe_of(given, corpus, folder, tmp_path, 48, 2, 1000)
    assert probe is not None
    assert probe.source == str(corpus_folder)
    assert probe.advice.startswith("replay some of it, as in -d OLD:0.1")


def test_the_start_of_a_reinforced_run_has_the_rows_it_began_with(
    bot: Path, base_run: Path, ids: torch.Tensor
) -> None:
    model = open_model(base_run, CPU).model
    size = model.config.vocab_size
    ids = ids.clamp(max=size - 1)
    with torch.no_grad():
        wanted = model.logits(model(ids))
        load_adapter(model, bot / "model")
        start = Start(model)
        changed = model.logits(model(ids))
        with start.model() as before:
            found = before.logits(before(ids))
        assert torch.equal(model.logits(model(ids)), changed)
    close = {"rtol": 0.0, "atol": 1e-5 * float(wanted.abs().max())}
    torch.testing.assert_close(found[..., :size], wanted, **close)
    assert not torch.allclose(changed[..., :size], wanted, **close)
