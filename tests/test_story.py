"""The whole main job as a person does it: files in, a chatbot out, each step a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import sample_chats, write_jsonl

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {
    "CHATBENCH_MODEL_N_LAYERS": "2",
    "CHATBENCH_MODEL_HIDDEN_SIZE": "64",
    "CHATBENCH_MODEL_N_HEADS": "2",
}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """preprocess, pretrain and finetune on a person's own files."""
    from conftest import chatbench

    home = tmp_path_factory.mktemp("story")
    environment = {**os.environ, **SMALL}
    corpus, base, bot = (home / name for name in ("corpus", "base", "bot"))
    for arguments in (
        ["preprocess", sources, "-o", corpus, "--vocab-size", "420"],
        ["pretrain", "-d", corpus, "-o", base, "--steps", "30", "--seq-len", "64"],
        ["finetune", "-m", base, "-d", sources / "chats.jsonl", "-o", bot, "--epochs", "20",
         "--batch-tokens", "256"],
    ):  # fmt: skip
        done = chatbench(*arguments, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(arguments[arguments.index("-o") + 1])
    return home


def test_every_checkpoint_and_run_can_be_talked_to(story: Path, cli: Cli) -> None:
    newest = sorted((story / "bot" / "checkpoints").iterdir())[-1]
    for model in (story / "bot", story / "bot" / "model", newest, newest / "model"):
        done = cli(
            "chat", "-m", model, "-p", "What does tea cost?", "--temp", "0", "--max-tokens", "12"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_finetuning_taught_the_replies(story: Path) -> None:
    lines = (story / "bot" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    begun = next(row["loss"] for row in rows if "loss" in row)
    ended = [row["val_loss"] for row in rows if "val_loss" in row][-1]
    assert ended < 0.5 * begun


def test_evaluate_scores_questions_and_the_corpus(story: Path, cli: Cli, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", sample_chats(8))
    done = cli("evaluate", "-m", story / "bot", "-d", questions, "--json", "--max-tokens", "24")
    scores = {s["name"]: s for s in json.loads(done.stdout)["scores"]}
    assert {"perplexity", "bits_per_byte", "bleu", "chrf", "rouge1", "rouge2", "rougeL",
            "distinct1", "distinct2"} <= set(scores)  # fmt: skip
    assert all(score["n"] > 0 and score["signature"] for score in scores.values())
    done = cli("evaluate", "-m", story / "base", "-d", story / "corpus", "--max-tokens", "8")
    assert re.search(r"^bits_per_byte +\d", done.stdout, re.M), done.stdout + done.stderr


def test_pipes_carry_questions_and_replies(story: Path, cli: Cli) -> None:
    done = cli("chat", "-m", story / "bot", "--max-tokens", "8", input="What does ink 3 cost?\n")
    assert done.returncode == 0
    assert done.stdout.strip()
    lines = "".join(json.dumps({"id": n, "prompt": f"tea {n}"}) + "\n" for n in range(5))
    done = cli("chat", "-m", story / "bot", "--jsonl", "--max-tokens", "8", input=lines)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(5))


def test_the_model_folder_opens_in_transformers_with_equal_logits(story: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatbench.model.folder import open_model

    folder = story / "bot" / "model"
    ours = open_model(folder, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([ours.tokenizer.encode("What does tea 7 cost? 茶叶多少钱？")])
    with torch.no_grad():
        difference = ours.model.logits(ours.model(ids)) - theirs(ids).logits
    assert difference.abs().max() < 1e-4
    chat = [{"role": "user", "content": "茶叶 tea?"}]
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    from chatbench.conversation import parse_messages
    from chatbench.text.template import reply_prompt

    assert rendered == reply_prompt(ours.tokenizer, parse_messages(chat))
