"""pretrain and finetune, in the order things happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from chatbench import __version__, console
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.errors import DataError, UsageError
from chatbench.model.device import dtype_name, pick_device, pick_dtype
from chatbench.model.folder import open_model, read_provenance
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.report.making import leave_report
from chatbench.runs import MARK, named
from chatbench.settings import FinetuneSettings, PretrainSettings
from chatbench.settings.base import replace
from chatbench.text.chat_templates import has_template
from chatbench.text.tags import known_after, known_in
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.adapting import (
    EVERYTHING,
    WHOLE,
    Adaptation,
    Learned,
    adaptation_of,
    begin,
    with_control_tokens,
)
from chatbench.train.batches import StreamRows
from chatbench.train.classes import classes
from chatbench.train.compiling import check_compiler
from chatbench.train.dialogues import is_corpus, open_dialogues, sources_of
from chatbench.train.forecast import Difficulty, difficulty
from chatbench.train.forgetting import Probe, probe_of
from chatbench.train.labelled import open_labelled
from chatbench.train.likelihood import Texts
from chatbench.train.loop import Trainer
from chatbench.train.material import Given, Material
from chatbench.train.parallel import World, led, options, world
from chatbench.train.plan import (
    DEFAULT_FINETUNE_EPOCHS,
    DEFAULT_PRETRAIN_MINUTES,
    Plan,
    make_plan,
    usual_batch,
)
from chatbench.train.planning import (
    chosen_shape,
    costs,
    fitting_micro_batch,
    settled,
    tell_haste,
    tell_warnings,
    use_threads,
)
from chatbench.train.preference import preferences
from chatbench.train.prompts import check_rewards, grpo
from chatbench.train.references import References
from chatbench.train.run import CONFIG, Run, RunSettings, open_run, patience_of
from chatbench.train.samples import Prompt, chat_prompts, text_prompts
from chatbench.train.scope import check_scope
from chatbench.train.summary import summary
from chatbench.train.supervised import supervised
from chatbench.train.table import keep_plan, show_plan

_FINETUNE_BATCH_TOKENS = 4096
# What a finetune learns from, by its objective.
MATERIALS: dict[str, Callable[[Given], Material]] = {
    "sft": supervised, "dpo": preferences, "grpo": grpo, "classify": classes,
}  # fmt: skip


def pretrain(settings: PretrainSettings, begun: float | None = None) -> Path | None:
    """Train a model from nothing on a corpus folder; returns the run folder, None after a dry run.

    `begun`: when the command did, on time.monotonic's clock; minutes count from there.
    """
    begun, settings = begun or time.monotonic(), replace(settings)
    with world(pick_device(settings.device), settings.train.parallel) as ranks:
        return _pretrain(settings, begun, ranks)


def _pretrain(settings: PretrainSettings, begun: float, ranks: World) -> Path | None:
    settings.resume |= ranks.restarted
    ranks.compare(options(settings))
    corpus = open_corpus(Path(settings.data))
    ranks.compare({"the corpus": corpus.fingerprint})
    device = ranks.device(pick_device(settings.device))
    check_compiler(settings.train.compile, device)
    with _place(settings, ranks) as (run, _):
        if run is not None and run.finished:
            return run.path
        threads = use_threads(device)
        hard = difficulty(corpus)
        with led(settings, ranks):
            dtype = _number_format(run, settings, device)
            config = chosen_shape(settings, corpus, hard, device, dtype, begun)
        rows, held = (
            StreamRows(
                corpus.split(name), config.context, corpus.tokenizer.end_of_text, settings.seed,
                tag_dropout=dropout,
            )
            for name, dropout in (("train", settings.tag_dropout), ("val", 0.0))
        )  # fmt: skip
        material = Texts(rows, held, corpus.tokenizer)
        plan = ranks.first_says(
            lambda: _planned(
                settings, config, material, device, threads, begun,
                seq_len=config.context, batch_tokens=usual_batch(settings.model), hard=hard,
                tokenizer=corpus.tokenizer, ranks=ranks.size,
            ),
            Plan,
        )  # fmt: skip
        if run is None:
            return None
        model = GPT(config)
        initialise(model, settings.seed)
        return _train(
            run, settings, corpus, model.to(device), material,
            text_prompts(settings.train.prompts, corpus), plan, ranks, hard=hard,
        )  # fmt: skip


def finetune(settings: FinetuneSettings, begun: float | None = None) -> Path | None:
    """Train a model further on dialogues; returns the run folder, None after a dry run.

    `begun` as in `pretrain`.
    """
    begun, settings = begun or time.monotonic(), replace(settings)
    if not (settings.resume and (Path(settings.out) / CONFIG).is_file()):  # judged when it began
        check_scope(settings)
        check_rewards(settings)
    if settings.model.startswith(MARK):  # a resume must not find another
        settings.model = str(named(settings.model, model=True, but=Path(settings.out)))
    with world(pick_device(settings.device), settings.train.parallel) as ranks:
        return _finetune(settings, begun, ranks)


def _finetune(settings: FinetuneSettings, begun: float, ranks: World) -> Path | None:
    settings.resume |= ranks.restarted
    ranks.compare(options(settings))
    device = ranks.device(pick_device(settings.device))
    check_compiler(settings.train.compile, device)
    classifies = settings.objective == "classify"
    adaptation = adaptation_of(settings)
    opened = open_model(settings.model, device, template=settings.template)
    if not classifies:
        opened, adaptation = with_control_tokens(opened, adaptation, settings)
    model, tokenizer, base = opened
    seq_len = settings.train.seq_len or model.config.context
    if seq_len > model.config.context:
        raise UsageError(
            f"--seq-len {seq_len} is longer than the model's context of {model.config.context}",
            hint=f"use at most {model.config.context}",
        )
    ready = all(is_corpus(source.place) for source in sources_of(settings.data))
    if settings.train_on != "all" and not ready and not classifies:
        tokenizer.template  # noqa: B018  a model without one is refused before any work
    learned = begin(adaptation, opened, settings)
    with _place(settings, ranks) as (run, place):
        if run is not None and run.finished:
            return run.path
        threads = use_threads(device)
        with led(settings, ranks):
            _number_format(run, settings, device)
        corpus = (
            open_labelled(settings, tokenizer) if classifies
            else open_dialogues(settings, tokenizer, base, place)
        )  # fmt: skip
        ranks.compare({"the corpus": corpus.fingerprint})
        material = MATERIALS[settings.objective](Given(settings, corpus, model, seq_len, place))
        shape = model.config._replace(labels=(), pooling="last", causal=True)
        plan = ranks.first_says(
            lambda: _planned(
                settings, shape, material, device, threads, begun,
                seq_len=getattr(material, "row_len", seq_len), ranks=ranks.size,
                batch_tokens=getattr(material, "batch_tokens", _FINETUNE_BATCH_TOKENS),
                adaptation=adaptation, learns=adaptation.describe(model),
            ),
            Plan,
        )  # fmt: skip
        if run is None:
            return None
        make = chat_prompts if has_template(corpus.tokenizer) else text_prompts
        prompts = [] if classifies else make(settings.train.prompts, corpus)
        probe = None if classifies else probe_of(
            settings, corpus, base, place, model.config.context, plan.micro_batch, plan.eval_tokens
        )  # fmt: skip
        return _train(
            run, settings, corpus, model, material, prompts, plan, ranks, base=str(base),
            learned=learned, probe=probe,
        )  # fmt: skip


@contextmanager
def _place(settings: RunSettings, ranks: World) -> Iterator[tuple[Run | None, Path]]:
    """The run folder, locked; of a dry run a folder that vanishes."""
    if settings.dry_run:
        with TemporaryDirectory() as scratch:
            yield None, Path(scratch)
        return
    with open_run(settings, ranks) as run:
        yield run, run.path


def _number_format(run: Run | None, settings: RunSettings, device: torch.device) -> torch.dtype:
    """What to compute in, written into the settings: measured once, when a run begins."""
    if run is not None:
        run.take_over(settings)
    dtype = pick_dtype(settings.dtype, device)
    settings.dtype = dtype_name(dtype)
    return dtype


def _planned(
    settings: RunSettings, config: ModelConfig, material: Material, device: torch.device,
    threads: str, begun: float, *, seq_len: int, batch_tokens: int, hard: Difficulty | None = None,
    tokenizer: Tokenizer | None = None, ranks: int = 1, adaptation: Adaptation = WHOLE,
    learns: str = "",
) -> Plan:  # fmt: skip
    """The plan, told to people. What was measured for it is written into the settings."""
    if not material.count():
        raise DataError("the training split holds nothing to learn from")
    pretraining = isinstance(settings, PretrainSettings)
    train, dtype = settings.train, pick_dtype(settings.dtype, device)
    plan = make_plan(
        train, settings.optim, seq_len=seq_len, batch_tokens=batch_tokens,
        rows_per_epoch=material.count(), hidden_size=config.hidden_size, finetune=not pretraining,
        default_minutes=DEFAULT_PRETRAIN_MINUTES if pretraining else None,
        default_epochs=(
            None if pretraining else getattr(material, "epochs", DEFAULT_FINETUNE_EPOCHS)
        ),
        rate=adaptation.rate(settings.optim.optimizer) * getattr(material, "rate", 1.0),
        whole=adaptation.is_whole,
    )  # fmt: skip
    micro = fitting_micro_batch(
        config, plan, train, settings.optim, device, dtype, measure=plan.minutes is not None,
        adaptation=adaptation,
    )  # fmt: skip
    if micro != plan.micro_batch or plan.minutes is not None:
        # Where it was measured, also the usual one: a resume must not find another.
        train.micro_batch = micro
        plan = plan._replace(micro_batch=micro)
    cost = costs(config, plan, settings.optim, device, dtype, adaptation)
    plan = settled(plan, train, cost, begun, ranks)._replace(begun=begun)
    with torch.device("meta"):
        total = GPT(config).parameter_count()
    place = ", ".join(word for word in (f"{settings.dtype} on {device.type}", threads) if word)
    show_plan(plan, config, total, material.count(), place, cost, hard, learns)
    if hard is not None and tokenizer is not None:
        tell_warnings(config, plan, hard, tokenizer)
    return plan


def _train(
    run: Run, settings: RunSettings, corpus: Corpus, model: GPT, material: Material,
    prompts: list[Prompt], plan: Plan, ranks: World, base: str | None = None,
    learned: Learned = EVERYTHING, probe: Probe | None = None, hard: Difficulty | None = None,
) -> Path:  # fmt: skip
    """The part that all training shares; `base` names the model that a finetune starts from, and
    `learned` what there is to know when a part of it learns."""
    objective = material.objective(plan, ranks)
    device = model.model.embed_tokens.weight.device
    if probe is not None and ranks.first:
        probe.begin(run.path, model)
    restored = run.begin(
        settings, corpus.fingerprint, device, corpus.tokenizer.digest, ranks, learned.base
    )
    fitting = [prompt for prompt in prompts if len(prompt.ids) < model.config.context]
    if len(fitting) < len(prompts):
        long = len(prompts) - len(fitting)
        said = console.counted(long, "sample prompt does", "sample prompts do")
        console.notice(f"{said} not fit into the context")
    assert plan.begun is not None
    plan = plan._replace(spent=time.monotonic() - plan.begun)
    tell_haste(plan)
    trainer = Trainer(
        run.path, plan, settings.train, settings.optim, model, corpus.tokenizer, objective, fitting,
        _provenance(corpus, base), corpus.fingerprint, pick_dtype(settings.dtype, device),
        patience=patience_of(settings), world=ranks, learned=learned,
    )  # fmt: skip
    if restored is None and ranks.first:
        keep_plan(run.path, plan, model.config, hard)
    elif restored is not None:
        trainer.restore(restored)
        console.say(f"continuing from {restored.path}")
    references = None
    if objective.of_text:
        held = list(objective.validation())
        references = References(run.path, corpus.split("train"), held, corpus.tokenizer)
    trainer.fit(references)
    if probe is not None and ranks.first:
        probe.end(run.path, device)
    if ranks.first:
        leave_report(run.path)
    for line in summary(run.path, finetuned=base is not None, ended=trainer.state):
        console.say(line)
    return run.path


def _provenance(corpus: Corpus, base: str | None) -> dict[str, Any]:
    """What a model folder says about where it came from, and which tags it has learned."""
    before = known_in(read_provenance(Path(base))) if base else {}
    tags = known_after(before, corpus.tags())
    return {
        "version": __version__,
        "corpus": corpus.fingerprint,
        "split": {
            name: corpus.manifest.info["settings"][name]
            for name in ("val_fraction", "test_fraction", "split_by", "near_threshold", "repair")
        },
        **({"base": base} if base else {}),
        **({"tags": tags} if tags else {}),
    }
