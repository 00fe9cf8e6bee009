"""A finetune whose tags are in none of its data is refused; one whose data have them in part goes
on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import Corpus
from chatbench.errors import UsageError
from chatbench.model.folder import open_model
from chatbench.settings import FinetuneSettings, PreprocessSettings
from chatbench.train.dialogues import open_dialogues
from chatbench.train.recipes import finetune
from chatbench.train.run import CONFIG
from conftest import sample_chats, write_jsonl


@pytest.fixture
def styled(tmp_path: Path) -> Path:
    rows = [row | {"style": "formal", "语气": "正式"} for row in sample_chats(12)]
    return write_jsonl(tmp_path / "styled.jsonl", rows)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "plain.jsonl", [row | {"id": 7} for row in sample_chats(20)[12:]])


def settings(base: Path, data: list[Any], out: Path, columns: str) -> FinetuneSettings:
    return FinetuneSettings(
        model=str(base), data=list(map(str, data)), out=str(out), tag_column=[columns],
        device="cpu", dtype="float32",
    )  # fmt: skip


def opened(given: FinetuneSettings, place: Path) -> Corpus:
    model = open_model(given.model, torch.device("cpu"))
    return open_dialogues(given, model.tokenizer, model.folder, place)


def corpus_of(styled: Path, base: Path, out: Path) -> Path:
    return preprocess(
        PreprocessSettings(
            inputs=[str(styled)], out=str(out), tokenizer=str(base / "model"), profile=False,
            tag_column=["style"],
        )
    )  # fmt: skip


def test_a_misspelt_column_is_refused_and_leaves_no_folder(
    base_run: Path, styled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError) as refused:
        finetune(settings(base_run, [styled], out, "styel"))
    assert str(refused.value) == (
        "--tag-column styel: no document says anything there; did you mean style? columns: style, "
        "语气"
    )
    assert not out.exists()


def test_some_of_the_data_may_go_without(
    base_run: Path, styled: Path, plain: Path, tmp_path: Path
) -> None:
    for number, data in enumerate(([styled, plain], [plain, styled], [styled, f"{plain}:0.2"])):
        place = tmp_path / f"place{number}"
        given = settings(base_run, data, place, "style,语气")
        assert {*opened(given, place).tags()} == {"style", "语气"}
        (place / CONFIG).write_text("")  # as of a run that has begun
        assert {*opened(given, place).tags()} == {"style", "语气"}


def test_what_none_of_several_have_is_refused(
    base_run: Path, styled: Path, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        opened(settings(base_run, [styled, plain], tmp_path / "o", "style,tone"), tmp_path / "o")
    assert str(refused.value).startswith("--tag-column tone: no document")
    assert all(column in str(refused.value) for column in ("style", "语气", "id"))


def test_of_a_corpus_folder_the_tags_are_known(
    base_run: Path, styled: Path, plain: Path, tmp_path: Path
) -> None:
    made = corpus_of(styled, base_run, tmp_path / "made")
    for data in ([made], [plain, f"{made}:0.1"]):
        assert opened(settings(base_run, data, tmp_path / "o", "style"), tmp_path / "o").tags()
    with pytest.raises(UsageError, match=r"did you mean style\?.* settled when it is made"):
        opened(settings(base_run, [made], tmp_path / "o", "styles"), tmp_path / "o")
    with pytest.raises(UsageError, match="give --tag-column to preprocess"):
        opened(settings(base_run, [made], tmp_path / "o", "语气"), tmp_path / "o")
