"""The dialogues of a finetune: a corpus folder, or one made from a file behind the scenes."""

from __future__ import annotations

from pathlib import Path

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.folder import read_provenance, tokenizer_folder
from chatbench.settings import FinetuneSettings, PreprocessSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.run import CONFIG


def open_dialogues(
    settings: FinetuneSettings, tokenizer: Tokenizer, base: Path, place: Path
) -> Corpus:
    """The corpus folder named, or one made from a file and kept in `place`.

    It is split as the base model's corpus was, so that what was held out there is held out here.
    """
    data = Path(settings.data)
    if is_corpus(data):
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
    made = place / "corpus"
    # Without a config.toml it belongs to an attempt that never began, perhaps on other data.
    if not (made.is_dir() and (place / CONFIG).is_file()):
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


def is_corpus(data: str | Path) -> bool:
    """Whether this is a folder that preprocess made."""
    return (Path(data) / "manifest.json").is_file()
