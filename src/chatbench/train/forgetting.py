"""What a finetune forgets: bits per byte on text of before, at its beginning and of its model."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from chatbench import console
from chatbench.corpus.cache import preprocess_once
from chatbench.corpus.shards import KIND, Corpus, TokenSplit, open_corpus
from chatbench.errors import IntegrityError, UserError
from chatbench.model.folder import open_model, read_provenance, tokenizer_folder
from chatbench.model.transformer import GPT
from chatbench.settings import FinetuneSettings, PreprocessSettings
from chatbench.storage import read_manifest, verify_files, write_json
from chatbench.text.tokenizer import Tokenizer, open_tokenizer
from chatbench.train.batches import StreamRows, held_out
from chatbench.train.likelihood import Likelihood
from chatbench.train.objective import Batch
from chatbench.train.parallel import SOLO
from chatbench.train.run import CONFIG
from chatbench.train.validating import validation

FILE = "probe.json"
_TOKENS = 16_384
# From here on a model is called forgetful: so much worse, and by so many bits.
_MUCH, _AT_LEAST = 1.1, 0.05


class Probed(msgspec.Struct):
    """`probe.json` of a run: bits per byte on the first `tokens` tokens of `source`."""

    source: str
    tokens: int
    before: float
    after: float | None = None


class Probe(NamedTuple):
    """Texts that the base model knew, as rows of its own length."""

    source: str
    batches: list[Batch]
    tokenizer: Tokenizer
    advice: str

    def begin(self, run: Path, model: GPT) -> None:
        """Measure the base model, unless the run had begun before."""
        known = read_probed(run) if (run / CONFIG).is_file() else None
        if known is None or known.source != self.source:
            tokens = int(sum(batch.counted().weight for batch in self.batches))
            write_json(run / FILE, Probed(self.source, tokens, self._bits(model)))

    def end(self, run: Path, device: torch.device) -> None:
        """Measure the finished model of the run and say what it forgot."""
        known = read_probed(run)
        if known is None:
            return
        known.after = self._bits(open_model(run, device).model)
        write_json(run / FILE, known)
        told = (
            f"on {console.visible(self.source)} it had {known.before:.3f} bits per byte before, "
            f"{known.after:.3f} now"
        )
        if known.after > max(_MUCH * known.before, known.before + _AT_LEAST):
            console.notice(f"the model has forgotten much: {told}; {self.advice}")
        else:
            console.say(f"little forgotten: {told}")

    def _bits(self, model: GPT) -> float:
        device = model.model.embed_tokens.weight.device
        objective = Likelihood(None, self.batches, self.tokenizer)
        measured = validation(model.eval(), objective, SOLO, len(self.batches[0].ids), device)
        return measured["val_bits_per_byte"]


def read_probed(run: Path) -> Probed | None:
    """What was measured for a run; None when nothing was, or it cannot be read."""
    try:
        return msgspec.json.decode((run / FILE).read_bytes(), type=Probed)
    except (OSError, msgspec.DecodeError):
        return None


def probe_of(
    settings: FinetuneSettings, corpus: Corpus, base: Path, place: Path, seq_len: int, rows: int,
    tokens: int,
) -> Probe | None:  # fmt: skip
    """What forgetting is measured on: what --probe names, else what was held out of replayed
    data, else of the base model's corpus; None when none of it is at hand.

    `rows` are computed at once, `tokens` at most are looked at. Raises as preprocess for --probe.
    """
    found = _found(settings, corpus, base, place)
    if found is None:
        return None
    known, split = found
    stream = StreamRows(split, seq_len, known.tokenizer.end_of_text, 0)
    batches = held_out(stream, rows, min(_TOKENS, tokens))
    if not batches:
        return None
    advice = _advice(settings, corpus, known)
    return Probe(settings.probe or str(known.folder), batches, corpus.tokenizer, advice)


def _advice(settings: FinetuneSettings, corpus: Corpus, known: Corpus) -> str:
    """What helps against forgetting; texts of before are nothing to prefer and earn no reward."""
    less = "fewer --epochs, a lower --learning-rate, --lora-rank"
    if settings.objective == "dpo":
        return f"learn less: a larger --beta, {less}"
    if settings.objective == "grpo":
        return f"learn less: --kl-coef, {less}"
    more = f"replay some of it: -d {known.folder}:0.1"
    if settings.probe is not None or known.tokenizer.digest != corpus.tokenizer.digest:
        more = "replay some of it, as in -d OLD:0.1"
    elif any(known.folder == other.folder for other in corpus.replayed):
        more = "raise its share"
    return f"{more}, or learn less: {less}"


def _found(
    settings: FinetuneSettings, corpus: Corpus, base: Path, place: Path
) -> tuple[Corpus, TokenSplit] | None:
    if settings.probe is not None:
        return _named(settings.probe, base, place, corpus.tokenizer)
    for replayed in corpus.replayed:
        return replayed, replayed.split("val")
    known = _of_base(base, corpus.tokenizer)
    return None if known is None else (known, known.split("val"))


def _named(name: str, base: Path, place: Path, tokenizer: Tokenizer) -> tuple[Corpus, TokenSplit]:
    """The validation split of a corpus folder, or all of a file. Raises IntegrityError for a
    corpus in other tokens."""
    if (Path(name) / "manifest.json").is_file():
        corpus = open_corpus(Path(name))
        if not _same_ids(corpus, base, tokenizer):
            raise IntegrityError(
                f"{name} was made with another tokenizer than the model's",
                hint="give --probe the texts themselves",
            )
        return corpus, corpus.split("val")
    made = place / "probe"
    if not (made.is_dir() and (place / CONFIG).is_file()):
        preprocess_once(
            PreprocessSettings(
                inputs=[name], out=str(made), tokenizer=str(tokenizer_folder(base)),
                overwrite=True, profile=False, val_fraction=0.0, test_fraction=0.0,
            )
        )  # fmt: skip
    corpus = open_corpus(made)
    return corpus, corpus.split("train")


def _of_base(base: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus that the base model learned from, if its run is there and still names it."""
    try:
        wanted = read_provenance(base).get("corpus")
        if wanted is None:
            return None
        for run in (base, *base.parents[:4]):
            for folder in _corpora_of(run):
                corpus = _held_out_of(folder)
                if corpus is None or corpus.fingerprint != wanted:
                    continue
                if _same_ids(corpus, base, tokenizer):
                    return corpus
    except (UserError, OSError) as error:
        console.notice(f"what the model forgets is not measured: {error}")
    return None


def _same_ids(corpus: Corpus, base: Path, tokenizer: Tokenizer) -> bool:
    """Whether a corpus is written in the ids of the model: those of its base stay, whatever control
    tokens it got besides."""
    known = corpus.tokenizer.digest
    return known in (tokenizer.digest, open_tokenizer(tokenizer_folder(base)).digest)


def _corpora_of(run: Path) -> Sequence[Path]:
    """The corpus folders that a run names in its settings, or made itself."""
    try:
        settings: dict[str, Any] = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return []
    data = settings.get("data", [])
    named = [Path(name) for name in (data if isinstance(data, list) else [data])]
    return [*named, run / "corpus"]


def _held_out_of(folder: Path) -> Corpus | None:
    """A corpus of which only what was held out is verified: the rest may be large."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != KIND:
        return None
    files = {n: e for n, e in manifest.files.items() if n.split("/")[0] in ("val", "tokenizer")}
    verify_files(folder, msgspec.structs.replace(manifest, files=files))
    return Corpus(folder, manifest)
