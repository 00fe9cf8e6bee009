"""pretrain and finetune, in the order things happen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from chatbench import __version__, console
from chatbench.conversation import Message, parse_messages
from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import Corpus, TokenSplit, open_corpus
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.device import pick_device, pick_dtype
from chatbench.model.folder import open_model, read_provenance, tokenizer_folder
from chatbench.model.transformer import GPT, initialise
from chatbench.settings import FinetuneSettings, PreprocessSettings, PretrainSettings
from chatbench.text.chat_templates import has_template
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import Batches, PackedRows, Rows, StreamRows, held_out
from chatbench.train.compiling import check_compiler
from chatbench.train.likelihood import Likelihood
from chatbench.train.loop import Prompt, Trainer
from chatbench.train.plan import (
    DEFAULT_FINETUNE_EPOCHS,
    DEFAULT_PRETRAIN_MINUTES,
    SIZES,
    make_plan,
    model_config,
    show_plan,
)
from chatbench.train.run import CONFIG, Run, RunSettings, open_run

_PROMPT_CHARACTERS = 24
_SAMPLES = 2
_FINETUNE_BATCH_TOKENS = 4096


def pretrain(settings: PretrainSettings) -> Path:
    """Train a model from nothing on a corpus folder; returns the run folder."""
    corpus = open_corpus(Path(settings.data))
    device = pick_device(settings.device)
    check_compiler(settings.train.compile, device)
    config = model_config(settings.model, settings.train.seq_len, corpus.tokenizer.vocab_size)
    with open_run(settings) as run:
        if run.finished:
            return run.path
        model = GPT(config)
        initialise(model, settings.seed)
        rows, held = (
            StreamRows(split, config.context, corpus.tokenizer.end_of_text, settings.seed)
            for split in (corpus.split("train"), corpus.split("val"))
        )
        return _train(
            run, settings, corpus, model.to(device), rows, held,
            _text_prompts(settings.train.prompts, corpus),
            seq_len=config.context, batch_tokens=SIZES[settings.model.size].batch_tokens,
        )  # fmt: skip


def finetune(settings: FinetuneSettings) -> Path:
    """Train a model further on dialogues; returns the run folder."""
    device = pick_device(settings.device)
    check_compiler(settings.train.compile, device)
    model, tokenizer, base = open_model(settings.model, device, template=settings.template)
    seq_len = settings.train.seq_len or model.config.context
    if seq_len > model.config.context:
        raise UsageError(
            f"--seq-len {seq_len} is longer than the model's context of {model.config.context}",
            hint=f"use at most {model.config.context}",
        )
    if settings.train_on == "assistant" and not _is_corpus(settings.data):
        tokenizer.template  # noqa: B018  a model without one is refused before any work
    with open_run(settings) as run:
        if run.finished:
            return run.path
        corpus = _dialogues(settings, tokenizer, base)
        rows, held = (
            _packed(settings, split, corpus.tokenizer, seq_len)
            for split in (corpus.split("train"), corpus.split("val"))
        )
        if rows.skipped:
            console.notice(
                f"{rows.skipped} texts and pieces hold no reply to learn from, they were left out"
            )
        prompts = _chat_prompts if has_template(corpus.tokenizer) else _text_prompts
        return _train(
            run, settings, corpus, model, rows, held, prompts(settings.train.prompts, corpus),
            seq_len=seq_len, batch_tokens=_FINETUNE_BATCH_TOKENS, base=str(base),
        )  # fmt: skip


def _packed(
    settings: FinetuneSettings, split: TokenSplit, tokenizer: Tokenizer, seq_len: int
) -> PackedRows:
    """Rows of conversations, cut where the template begins turns; texts alone need no template."""
    template = tokenizer.template if has_template(tokenizer) else None
    return PackedRows(
        split, seq_len, template.turn_start if template else None, settings.seed,
        user_turn=template.user_turn if template else (), learn_all=settings.train_on == "all",
    )  # fmt: skip


def _train(
    run: Run, settings: RunSettings, corpus: Corpus, model: GPT, rows: Rows, held: Rows,
    prompts: list[Prompt], *, seq_len: int, batch_tokens: int, base: str | None = None,
) -> Path:  # fmt: skip
    """The part that all training shares; `base` names the model that a finetune starts from."""
    plan = make_plan(
        settings.train, settings.optim, seq_len=seq_len, batch_tokens=batch_tokens,
        rows_per_epoch=rows.count(), hidden_size=model.config.hidden_size, finetune=bool(base),
        default_minutes=None if base else DEFAULT_PRETRAIN_MINUTES,
        default_epochs=DEFAULT_FINETUNE_EPOCHS if base else None,
    )  # fmt: skip
    batches = Batches(rows, plan.rows_per_step, plan.micro_batch)
    validation = held_out(held, plan.micro_batch, settings.train.eval_tokens)
    device = model.model.embed_tokens.weight.device
    restored = run.begin(settings, corpus.fingerprint, device)
    show_plan(
        plan, model.config, model.parameter_count(), rows.count(), settings.dtype, device.type
    )
    fitting = [prompt for prompt in prompts if len(prompt.ids) < model.config.context]
    if len(fitting) < len(prompts):
        console.notice(f"{len(prompts) - len(fitting)} sample prompts do not fit into the context")
    trainer = Trainer(
        run.path, plan, settings.train, settings.optim, model, corpus.tokenizer,
        Likelihood(batches, validation, corpus.tokenizer), fitting,
        _provenance(corpus, base), corpus.fingerprint, pick_dtype(settings.dtype, device),
    )  # fmt: skip
    if restored is not None:
        trainer.restore(restored)
        console.say(f"continuing from {restored.path}")
    trainer.fit()
    return run.path


def _dialogues(settings: FinetuneSettings, tokenizer: Tokenizer, base: Path) -> Corpus:
    """The corpus folder named, or one made from a file and kept in the run folder.

    It is split as the base model's corpus was, so that what was held out there is held out here.
    """
    data = Path(settings.data)
    if _is_corpus(data):
        corpus = open_corpus(data)
        if corpus.tokenizer.digest != tokenizer.digest:
            raise IntegrityError(
                f"{data} was made with another tokenizer than {settings.model}",
                hint=f"give the .jsonl itself, or preprocess it with --tokenizer {settings.model}",
            )
        if settings.template and corpus.tokenizer.template.source != tokenizer.template.source:
            raise UsageError(
                f"the conversations of {data} are written in another chat template",
                hint=f"give the .jsonl itself, or preprocess with --template {settings.template}",
            )
        return corpus
    run = Path(settings.out)
    made = run / "corpus"
    # Without a config.toml it belongs to an attempt that never began, perhaps on other data.
    if not (made.is_dir() and (run / CONFIG).is_file()):
        preprocess(
            PreprocessSettings(
                inputs=[str(data)],
                out=str(made),
                tokenizer=str(tokenizer_folder(base)),
                template=settings.template,
                overwrite=True,
                profile=False,
                **read_provenance(base).get("split", {}),
            )
        )
    return open_corpus(made)


def _is_corpus(data: str | Path) -> bool:
    return (Path(data) / "manifest.json").is_file()


def _chat_prompts(given: list[str], corpus: Corpus) -> list[Prompt]:
    """What the samples answer: as given, or first questions of the validation split."""
    asked = given or [
        next((m.content for m in parse_messages(row["messages"]) if m.role == "user"), "")
        for row in _held_out_rows(corpus, "messages")
    ]
    tokenizer = corpus.tokenizer
    return [Prompt(t, reply_prompt(tokenizer, [Message("user", t)])) for t in asked if t]


def _text_prompts(given: list[str], corpus: Corpus) -> list[Prompt]:
    """What the samples continue: as given, or beginnings of validation texts, else questions."""
    tokenizer = corpus.tokenizer
    begun = given or [row["text"][:_PROMPT_CHARACTERS] for row in _held_out_rows(corpus, "text")]
    prompts = [
        Prompt(text, [*tokenizer.text_prefix, *tokenizer.encode(text)]) for text in begun if text
    ]
    return prompts or _chat_prompts([], corpus)


def _held_out_rows(corpus: Corpus, key: str) -> Iterator[dict[str, Any]]:
    """The first rows of the validation split that have this key."""
    with open(corpus.folder / "val.jsonl", "rb") as handle:
        rows = map(msgspec.json.decode, handle)
        yield from islice((row for row in rows if key in row), _SAMPLES)


def _provenance(corpus: Corpus, base: str | None) -> dict[str, Any]:
    """What a model folder says about where it came from."""
    return {
        "version": __version__,
        "corpus": corpus.fingerprint,
        "split": {
            name: corpus.manifest.info["settings"][name]
            for name in ("val_fraction", "test_fraction", "split_by", "near_threshold", "repair")
        },
        **({"base": base} if base else {}),
    }
