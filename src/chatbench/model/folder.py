"""open_model and write_model: a model folder is a Hugging Face folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from chatbench import console
from chatbench.errors import IntegrityError, UsageError, did_you_mean
from chatbench.hub import fetch, is_hub_name
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.finding import (
    ADAPTER_WEIGHTS,
    CONFIG,
    LARGEST_CONFIG,
    find_base,
    find_model,
    read_notes,
    tokenizer_folder,
)
from chatbench.model.labels import labels_of, of_trunk, read_head, write_labels
from chatbench.model.reading import read_object, shown
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.model.unreadable import find_unreadable
from chatbench.model.weights import (
    LARGEST_SHARD,
    READABLE,
    WEIGHTS,
    Deferred,
    StoredWeights,
    open_weights,
    write_weights,
)
from chatbench.storage import read_manifest, verify_files, write_json
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "OpenedModel",
    "find_base",
    "find_model",
    "open_model",
    "read_config",
    "read_provenance",
    "read_weights",
    "stored_weights",
    "tokenizer_folder",
    "write_model",
]

_MOST = {"n_layers": 1024, "context": 1 << 24}
_LARGEST_SIZE = 1 << 40
_QKV = re.compile(r"\.[qkv]_proj\.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class OpenedModel(NamedTuple):
    model: GPT
    tokenizer: Tokenizer
    folder: Path


def open_model(
    path: str | Path, device: torch.device, dtype: torch.dtype = torch.float32, *,
    quantize: str = "none", template: str | None = None, classifier: bool = False,
) -> OpenedModel:  # fmt: skip
    """Find, verify and load a model with its tokenizer, ready to compute on `device`.

    `path`: a model, adapter, run or checkpoint folder, or hf://owner/name, which is fetched.
    `quantize`: none, int8 or int4. `template`: a chat template's name or file, in place of its own.
    `classifier`: whether one that names classes instead of tokens will do as well.
    Raises UsageError (nothing there, or a classifier), IntegrityError (damaged, incomplete, hostile
    or not supported), EnvironmentFault (no network, memory or permission).
    """
    place = fetch(str(path)) if is_hub_name(path) else Path(path)
    folder = find_model(place)
    if not classifier and labels_of(folder):
        raise UsageError(
            f"{path} is a classifier, it names labels and writes no text",
            hint=f"use it by: chatbench classify -m {path}",
        )
    try:
        opened = _open(folder, device, dtype, template)
    except FileNotFoundError as error:  # a run in progress drops its oldest checkpoints
        raise IntegrityError(
            f"{error.filename} went away while {folder} was read", hint="try again"
        ) from error
    if quantize != "none":
        from chatbench.model.quantize import quantize_model

        quantize_model(opened.model, quantize)
    return opened


def _open(
    folder: Path, device: torch.device, dtype: torch.dtype, template: str | None
) -> OpenedModel:
    base = find_base(folder)
    if base is not None:
        _verify(folder)
        if not (folder / ADAPTER_WEIGHTS).exists():
            raise find_unreadable(folder) or IntegrityError(f"{folder} has no {ADAPTER_WEIGHTS}")
    config, stored = _outline(base or folder)
    tokenizer = open_tokenizer(folder if base is None else tokenizer_folder(folder), template)
    if base is None:
        _require_rows(tokenizer, config, folder)
    with _naming(base or folder):
        model = _build(config, stored, device, dtype)
    if base is not None:
        from chatbench.model.lora import fold, load_adapter

        load_adapter(model, folder)
        # As fast as a whole model, and plain weights for whoever trains, quantises or writes it.
        fold(model)
        _require_rows(tokenizer, model.config, folder)
    return OpenedModel(model.eval(), tokenizer, folder)


def _outline(folder: Path) -> tuple[ModelConfig, StoredWeights]:
    """A whole model's config and where its weights lie, if they can belong together."""
    _verify(folder)
    config = read_config(folder)
    stored = open_weights(folder)
    with _naming(folder):
        _require_plausible(config, stored)
    said = _read_raw(folder).get("max_position_embeddings")
    if config.positions == "rotary" and said != config.context:
        console.notice(
            f"{folder} says a context of {said}, but its layers look back {config.context} tokens"
            " only: it is opened for texts of that length, which are computed exactly"
        )
    return config, stored


def _require_rows(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise IntegrityError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} entries for a model of "
            f"{config.vocab_size}",
            hint="use the tokenizer it was trained with",
        )


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say in which folder it is what an error inside speaks of."""
    try:
        yield
    except IntegrityError as error:
        if str(folder) in error.message:
            raise
        raise IntegrityError(f"{folder}: {error.message}", hint=error.hint) from error


def _verify(folder: Path) -> None:
    """Against the manifest, where there is one of ours. A checkpoint's lies above its model/."""
    for holder in (folder, folder.parent) if folder.name == "model" else (folder,):
        manifest = read_manifest(holder)
        if manifest is not None:
            strange = next((n for n in manifest.files if ".." in Path(n).parts or n[:1] == "/"), "")
            if strange:
                raise IntegrityError(f"the manifest of {holder} names {shown(strange)}")
            verify_files(holder, manifest)
            return


def _require_plausible(config: ModelConfig, stored: StoredWeights) -> None:
    """Whether weights of this size can be those of this config, before anything of the config's
    sizes is made. Raises IntegrityError."""
    for name, value in config._asdict().items():
        most = _MOST.get(name, _LARGEST_SIZE)
        if type(value) is int and value > most:
            said = f"{value:,}" if value < 1 << 64 else "a number of more than 64 bits"
            raise IntegrityError(f"{CONFIG} says {name} {said}, chatbench computes up to {most:,}")
    block = config.hidden_size * (config.n_heads * config.head_dim + config.ffn_size)
    tables = config.hidden_size * config.vocab_size
    if config.positions == "learned":
        tables += config.hidden_size * config.context
    wanted, there = config.n_layers * block + tables, stored.elements()
    if wanted > there:
        raise IntegrityError(
            f"{CONFIG} describes a model of more than {wanted:.3g} weights, but {there:.3g} are "
            "stored",
            hint="take both files from the same model",
        )


def _build(
    config: ModelConfig, stored: StoredWeights, device: torch.device, dtype: torch.dtype
) -> GPT:
    """A model that owns these weights: nothing is initialised, nothing copied."""
    with torch.device("meta"):
        model = GPT(config)
    outline = _in_our_words(config, stored.skeleton().items())
    if config.tie_embeddings and _HEAD in outline:
        # Some files repeat a tied head; a few hold it in place of the embedding.
        outline.setdefault(_EMBEDDING, outline[_HEAD])
        outline.pop(_HEAD)
    check_weights(stored_weights(model), outline)
    weights = _in_our_words(config, stored.each(dtype, device))
    head = weights.pop(_HEAD, None) if config.tie_embeddings else None
    if head is not None and not torch.equal(weights.setdefault(_EMBEDDING, head), head):
        # As transformers since version 5: what is stored says more than what is noted about it.
        console.notice("the output head differs from the embeddings it is said to be, so it counts")
        with torch.device("meta"):
            model = GPT(config._replace(tie_embeddings=False))
        weights[_HEAD] = head
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie()
    return model


def _in_our_words(config: ModelConfig, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Hub weights by our names and layouts, one by one, so that no two copies of all are held."""
    architecture = ARCHITECTURES[config.model_type]
    found: dict[str, Tensor] = {}
    for name, weight in named:
        try:
            ours = architecture.from_hub({name: weight}, config)
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise IntegrityError(f"{shown(name)} is not what {CONFIG} says: {error}") from error
        twice = found.keys() & ours.keys()
        if twice:
            raise IntegrityError(f"the weights hold {shown(min(twice))} twice")
        found |= {key: value.contiguous() for key, value in ours.items()}
    return found


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `write_model` noted about where a model came from, or what was noted beside an adapter
    or in its base; empty for other models."""
    noted = read_notes(folder).get("chatbench")
    if noted is None:
        noted = _read_raw(find_base(folder) or folder).get("chatbench")
    return noted if isinstance(noted, dict) else {}


def _read_raw(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / CONFIG, LARGEST_CONFIG)
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no {CONFIG}") from None


def read_config(folder: Path) -> ModelConfig:
    """config.json in our words. Raises IntegrityError."""
    raw, path = _read_raw(folder), folder / CONFIG
    kind = raw.get("model_type")
    architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        if raw.get("auto_map"):
            hint = "it comes with code of its own (trust_remote_code), which is never run here"
        else:
            hint = did_you_mean(kind if isinstance(kind, str) else "", list(ARCHITECTURES))
        raise IntegrityError(
            f"{path} is of model_type {shown(kind)}, which chatbench does not compute", hint=hint
        )
    _refuse_quantised(path, raw)
    try:
        with _naming(folder):
            found = architecture.read(of_trunk(raw))._replace(**read_head(raw))
        # As a tuple, or the types would not be looked at.
        return msgspec.convert(tuple(found), ModelConfig).check()
    except (
        msgspec.ValidationError, AttributeError, LookupError, TypeError, ValueError,
        OverflowError, UsageError,
    ) as error:  # fmt: skip
        raise IntegrityError(f"{path} does not describe a model: {error}") from error


def _refuse_quantised(path: Path, raw: dict[str, Any]) -> None:
    noted = raw.get("quantization_config") or raw.get("quantization")
    if not noted:
        return
    method = noted.get("quant_method", "") if isinstance(noted, dict) else ""
    by = f" by {shown(method)}" if method else ""
    raise IntegrityError(
        f"the weights of {path.parent} are quantised{by}, in a form that chatbench does not read",
        hint="take the model it was made from; --quantize int8 makes it small when it is opened",
    )


def read_weights(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All weights of a folder by their hub names, as stored or in `dtype`.

    Raises IntegrityError, EnvironmentFault.
    """
    return open_weights(folder).read(dtype)


def check_weights(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Names, shapes and that they are floating-point numbers. Raises IntegrityError."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        name = min(missing or extra)
        what = f"lack {shown(name)}" if missing else f"hold an unknown {shown(name)}"
        hint = "set tie_word_embeddings there" if missing == {_HEAD} else None
        raise IntegrityError(
            f"the weights ({WEIGHTS}) {what}, so they do not belong to their {CONFIG}", hint=hint
        )
    for name, parameter in wanted.items():
        if parameter.shape != found[name].shape:
            raise IntegrityError(
                f"{WEIGHTS}: {name} has shape {tuple(found[name].shape)}, "
                f"{CONFIG} wants {tuple(parameter.shape)}"
            )
        if found[name].dtype not in READABLE.values():
            raise IntegrityError(
                f"{WEIGHTS}: {name} is not stored in floating-point numbers of 16 bits or more",
                hint="take the model before it was quantised",
            )


def stored_weights(model: GPT) -> dict[str, Tensor]:
    """Parameters by our names, tied ones once."""
    return {name: p.detach() for name, p in sorted(model.named_parameters())}


def write_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor | Deferred],
    tokenizer: Tokenizer, provenance: dict[str, Any] | None = None, *,
    largest_shard: int = LARGEST_SHARD,
) -> None:  # fmt: skip
    """Fill a folder that `storage.new_folder` made, so that transformers opens it.

    `weights` have our names; they are stored in their dtype where it is one of float32, bfloat16
    and float16 for all of them, else in float32. Those that are deferred are read one by one.
    """
    folder.mkdir(exist_ok=True)
    architecture = ARCHITECTURES[config.model_type]
    kinds = {weight.dtype for weight in weights.values()}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        dtype = torch.float32
    plain = architecture.write(config._replace(labels=(), pooling="last", causal=True))
    raw = write_labels(plain, config.labels, config.pooling, causal=config.causal)
    raw |= dict.fromkeys(raw.keys() & {"dtype", "torch_dtype"}, str(dtype).removeprefix("torch."))
    tokens = _special_ids(tokenizer)
    write_json(folder / CONFIG, {**raw, **tokens, "chatbench": provenance or {}})
    first = tokens["eos_token_id"]
    stops = [first, *sorted(tokenizer.stops - {first})]
    write_json(folder / "generation_config.json", {**tokens, "eos_token_id": stops})
    write_weights(folder, _in_hub_words(config, weights), dtype=dtype, largest_shard=largest_shard)
    tokenizer.save(folder, config.context)


def _in_hub_words(
    config: ModelConfig, weights: Mapping[str, Tensor | Deferred]
) -> dict[str, Tensor] | dict[str, Deferred]:
    """By hub names and layouts; what is deferred stays so."""
    to_hub = ARCHITECTURES[config.model_type].to_hub
    there = {name: w for name, w in weights.items() if isinstance(w, Tensor)}
    later = {name: w for name, w in weights.items() if isinstance(w, Deferred)}
    if not later:
        return to_hub(there, config)
    assert not there
    # Some families keep queries, keys and values in one tensor.
    groups: dict[str, dict[str, Deferred]] = defaultdict(dict)
    for name, weight in later.items():
        groups[_QKV.sub(".qkv_proj.", name)][name] = weight
    found: dict[str, Deferred] = {}
    for group in groups.values():
        outline = {n: torch.empty(w.shape, dtype=w.dtype, device="meta") for n, w in group.items()}
        for name, like in to_hub(outline, config).items():
            found[name] = Deferred(like.shape, like.dtype, partial(_made, group, config, name))
    return found


def _made(group: dict[str, Deferred], config: ModelConfig, name: str) -> Tensor:
    """One hub weight of those that come of `group`."""
    read = {ours: weight.read() for ours, weight in group.items()}
    return ARCHITECTURES[config.model_type].to_hub(read, config)[name]


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids that config.json names, by the tokenizer's own settings."""
    if tokenizer.is_native:
        return {"eos_token_id": tokenizer.turn_end, "pad_token_id": tokenizer.end_of_text}
    ids = {"eos_token_id": tokenizer.end_of_text, "pad_token_id": tokenizer.end_of_text}
    for key in ("bos_token", "eos_token", "pad_token"):
        token = tokenizer.settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in tokenizer.controls:
            ids[f"{key}_id"] = tokenizer.controls[text]
    return ids
