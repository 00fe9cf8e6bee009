"""What of a model learns in a finetune: all of it, its last blocks, or an adapter beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatbench import console
from chatbench.errors import UsageError
from chatbench.hub import PREFIX, is_hub_name
from chatbench.model.finding import find_base, weights_digest
from chatbench.model.folder import OpenedModel, write_model
from chatbench.model.lora import Base, LoraConfig, add_adapter, write_adapter
from chatbench.model.quantize import quantize_model
from chatbench.model.rows import learn_rows, start_rows
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.model.weights import Deferred
from chatbench.settings import FinetuneSettings
from chatbench.text.new_tokens import with_new_tokens
from chatbench.text.tokenizer import Tokenizer

# Fills a model folder from config, weights, tokenizer and provenance, as `write_model` does.
Write = Callable[
    [Path, ModelConfig, Mapping[str, Tensor | Deferred], Tokenizer, dict[str, Any]], None
]
# Rates of an adapter's matrices, as multiples of those of weights in a finetune: found with rank 8
# at width 128. Around AdamW's twice as much already diverges, Muon bears it.
ADAPTER_RATE = {"muon": 20.0, "adamw": 24.0}
# Rates of new tokens' rows beside one, as multiples of those of an embedding in a finetune: better
# than 1, 10 and 20 with Muon, on one base of width 256 that had hardly learned.
ROWS_RATE = 4.0
# Bytes of a frozen weight: int4 has two halves for each group of 32.
_BYTES = {"int8": 1.0, "int4": 0.625}


class Learned(NamedTuple):
    """What a run has to know of a model of which a part learns.

    `write`: fills the model folder from that part, None where everything learns; `base`: digest of
    the weights that it belongs to; `seed`: of what is left out at random.
    """

    write: Write | None = None
    base: str = ""
    seed: int = 0


EVERYTHING = Learned()


class Adaptation(NamedTuple):
    """Which part learns. `layers`: only the last so many blocks and the norm after them;
    `quantize`: bits of the weights beside an adapter; `rows`: ids of new tokens, whose rows of
    embedding and head learn with an adapter."""

    lora: LoraConfig | None = None
    layers: int | None = None
    quantize: str = "none"
    seed: int = 0
    rows: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether everything learns."""
        return self.lora is None and self.layers is None

    def apply(self, model: GPT, *, quantize: bool = True) -> None:
        """Freeze the rest, and put the adapter in. Raises UsageError for targets that no layer
        bears, and for more layers than there are."""
        if self.quantize != "none" and quantize:
            # The head stays exact: in training it is read once for many rows.
            quantize_model(model, self.quantize, head=False)
        if self.lora is not None:
            add_adapter(model, self.lora, self.seed)
            if self.rows:
                learn_rows(model, self.rows)
        elif self.layers is not None:
            train_last(model, self.layers)

    def rate(self, optimizer: str) -> float:
        """The default rate as a multiple of that of a finetune of all weights."""
        return 1.0 if self.lora is None else ADAPTER_RATE[optimizer]

    def shallow(self, blocks: int) -> Adaptation:
        """The like for a model of `blocks` blocks, to be measured: something always learns."""
        if self.lora is not None and any("layers." in target for target in self.lora.targets):
            return self._replace(lora=self.lora._replace(targets="all"))
        layers = None if self.layers is None else max(1, min(self.layers, blocks))
        return self._replace(layers=layers)

    def frozen_bytes(self, name: str, weight: Tensor, width: int) -> float:
        """What a weight that stays as it is takes, its numbers being `width` bytes wide."""
        quantized = self.quantize in _BYTES and ".layers." in name and weight.ndim == 2
        return weight.numel() * (_BYTES[self.quantize] if quantized else width)

    def describe(self, model: nn.Module) -> str:
        """In words, for people; none for all of it."""
        if self.is_whole:
            return ""
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if self.lora is None:
            blocks = f"the last {console.counted(self.layers or 0, 'block')} and the norm"
            what = blocks if self.layers else "the head alone"
        else:
            bits = "" if self.quantize == "none" else f" over weights in {self.quantize}"
            new = f" and {console.counted(len(self.rows), 'new token')}" if self.rows else ""
            what = f"an adapter of rank {self.lora.rank}{bits}{new}"
        return f"{what}, {learning:,} parameters"


WHOLE = Adaptation()


def adaptation_of(settings: FinetuneSettings) -> Adaptation:
    """What the settings say. Raises UsageError when they do not go together."""
    lora = settings.lora
    if lora.rank is None:
        if settings.train_layers == 0 and settings.objective != "classify":
            raise UsageError(
                "--train-layers 0 leaves nothing to learn but a classifier's head",
                hint="let the last block learn with --train-layers 1, or add --objective classify",
            )
        return Adaptation(layers=settings.train_layers)
    if settings.train_layers is not None:
        raise UsageError(
            "--lora-rank and --train-layers exclude each other",
            hint="the one trains an adapter beside all blocks, the other the last blocks",
        )
    targets = tuple(t for said in lora.targets for t in said.replace(",", " ").split())
    config = LoraConfig(
        lora.rank, 2.0 * lora.rank if lora.alpha is None else lora.alpha, lora.dropout,
        "all" if targets in ((), ("all",)) else targets, lora.rslora,
    )  # fmt: skip
    return Adaptation(config.check(), None, settings.quantize, settings.seed)


def with_control_tokens(
    opened: OpenedModel, adaptation: Adaptation, settings: FinetuneSettings
) -> tuple[OpenedModel, Adaptation]:
    """Give the model the control tokens that --template writes and it lacks, and say which.

    Raises UsageError where their rows would not learn, and what reading the template raises.
    """
    model, before, folder = opened
    tokenizer, fresh = with_new_tokens(before)
    if not fresh:
        return OpenedModel(model, tokenizer, folder), adaptation
    if adaptation.layers is not None:
        raise UsageError(
            f"--template {settings.template} needs {console.counted(len(fresh), 'control token')} "
            "that the model lacks, and with --train-layers nothing would learn them",
            hint="use --lora-rank 8, or leave --train-layers out",
        )
    start_rows(model, fresh, before.vocab_size)
    names = " ".join(name for name, number in tokenizer.controls.items() if number in fresh)
    said = console.counted(len(fresh), "control token is", "control tokens are")
    console.say(f"{said} new to the model: {console.visible(names)}")
    return OpenedModel(model, tokenizer, folder), adaptation._replace(rows=fresh)


def begin(adaptation: Adaptation, opened: OpenedModel, settings: FinetuneSettings) -> Learned:
    """Make an opened model ready, and say what there is to know of it.

    Raises what `Adaptation.apply` raises, and UsageError for an adapter on an adapter.
    """
    if adaptation.is_whole:
        return EVERYTHING
    model, _, folder = opened
    if adaptation.lora is not None and find_base(folder) is not None:
        raise UsageError(
            f"{settings.model} is an adapter already, and an adapter has a whole model as its base",
            hint=f"merge it first: chatbench export -m {settings.model} --to hf -o MERGED",
        )
    digest = weights_digest(folder, read=True) or ""
    adaptation.apply(model)
    write: Write
    if adaptation.lora is None:
        # As they are now: the working copies may become bfloat16.
        frozen = {n: p.detach().cpu() for n, p in model.named_parameters() if not p.requires_grad}
        write = partial(_write_whole, frozen)
    else:
        base = Base(*_known_as(settings.model, folder), folder, digest)
        write = partial(write_adapter, lora=adaptation.lora, base=base, rows=adaptation.rows)
    return Learned(write, digest, settings.seed)


def _known_as(model: str, folder: Path) -> tuple[str, str | None]:
    """By what name, and revision, others find the base."""
    if not is_hub_name(model):
        return str(folder.absolute()), None
    name, _, revision = model.removeprefix(PREFIX).partition("@")
    return name, revision or None


def train_last(model: GPT, layers: int) -> None:
    """Only the last `layers` blocks and the norm after them learn, and a classifier's head.

    Raises UsageError when there are fewer blocks.
    """
    blocks = model.model.layers
    if layers > len(blocks):
        raise UsageError(
            f"--train-layers {layers} is more than the {len(blocks)} blocks of the model",
            hint=f"use at most {len(blocks)}, or leave it out to train everything",
        )
    own = {id(p) for part in (model.model, model.lm_head) for p in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in own)
    if layers:
        for part in (*blocks[-layers:], model.model.norm):
            part.requires_grad_(True)


def _write_whole(
    frozen: Mapping[str, Tensor], folder: Path, config: ModelConfig,
    weights: Mapping[str, Tensor | Deferred], tokenizer: Tokenizer, provenance: dict[str, Any],
) -> None:  # fmt: skip
    """`write_model` of what learned and what did not."""
    whole: dict[str, Tensor | Deferred] = {**frozen, **weights}
    if config.labels:
        whole.pop("lm_head.weight", None)  # a classifier has another head
    if any(isinstance(weight, Deferred) for weight in weights.values()):
        whole = {
            name: weight if isinstance(weight, Deferred)
            else Deferred(weight.shape, weight.dtype, partial(torch.Tensor.detach, weight))
            for name, weight in whole.items()
        }  # fmt: skip
    write_model(folder, config, whole, tokenizer, provenance)
