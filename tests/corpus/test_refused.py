"""Conversations that a chat template does not take are counted, kept aside, and stop nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import Row, build, exchange_row, facts_of, fates, numbered, prose, rows_of
from text.foreign import llama3_like, mistral_like, write_tokenizer

from chatbench.errors import DataError, ExitCode, UsageError
from conftest import sample_chats, write_jsonl

REFUSED = "refused by the chat template"
ALTERNATING = "(m.role == 'user') != (loop.index0 % 2 == 0)"
NEITHER = "m.role == 'system' or not loop.first and messages[loop.index0 - 1].role == m.role"
STRICT = """\
{%- for m in messages -%}
{%- if ALTERNATING -%}
{{- raise_exception('turns must alternate') -}}
{%- endif -%}
{{- ('[INST] ' + m.content + ' [/INST]') if m.role == 'user' else (m.content + eos_token) -}}
{%- endfor -%}
""".replace("ALTERNATING", ALTERNATING)


def turns(*roles: str, rng: random.Random) -> list[dict[str, str]]:
    return [{"role": r, "content": prose(rng, n % 2 == 1, 2)} for n, r in enumerate(roles)]


def some_rows(rng: random.Random) -> tuple[list[Row], list[bool]]:
    """Rows, and which of them alternate."""
    shapes = [
        (("user", "assistant"), True),
        (("system", "user", "assistant"), True),  # joined to the question
        (("user", "user", "assistant"), False),
        (("user", "assistant", "user", "assistant"), True),
        (("assistant", "user", "assistant"), False),
        (("user", "assistant", "tool", "assistant"), False),
    ]
    rows: list[Row] = []
    good = []
    for n in range(48):
        roles, taken = shapes[n % len(shapes)]
        rows.append({"messages": turns(*roles, rng=rng)})
        good.append(taken)
    rows += [{"text": prose(rng, n % 2 == 1)} for n in range(8)]
    return rows, [*good, *[True] * 8]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("mistral"), mistral_like())
    (folder / "chat_template.jinja").write_text(STRICT)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_the_ledger_adds_up_and_the_rest_is_kept(
    tmp_path: Path, rng: random.Random, mistral: Path, workers: int
) -> None:
    rows, good = some_rows(rng)
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path, tokenizer=str(mistral), workers=workers)
    fate = fates(corpus, len(rows))
    assert [found != REFUSED for found in fate] == good
    ledger: Any = corpus.manifest.info["ledger"]
    assert ledger["dropped"] == {REFUSED: good.count(False)}
    assert ledger["read"] == len(rows) == ledger["kept"] + good.count(False)
    splits = facts_of(corpus).splits
    assert sum(splits[name].documents for name in splits) == ledger["kept"]
    details = {row["detail"] for row in rows_of(corpus.folder / "dropped.jsonl")}
    assert any("turns must alternate" in detail for detail in details)


def test_both_sides_of_a_pair_and_the_control_text_are_asked_about(
    tmp_path: Path, rng: random.Random, mistral: Path
) -> None:
    """The template takes no system turn, which a tag becomes, and no two replies in a row."""
    template = tmp_path / "no_system.jinja"
    template.write_text(STRICT.replace(ALTERNATING, NEITHER))
    rows: list[Row] = [
        {"messages": turns("assistant", "user", "assistant", rng=rng), "style": style}
        for style in ("formal", None) * 12
    ]
    for twice in (False, True) * 8:
        asked, told, other, more = turns("user", "assistant", "assistant", "assistant", rng=rng)
        ending = [other, more] if twice else [other]
        rows.append({"chosen": [asked, told], "rejected": [asked, *ending], "twice": twice})
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(
        tmp_path / "c", path, tokenizer=str(mistral), template=str(template),
        tag_column=["style"], tag_dropout=0.0,
    )  # fmt: skip
    fate = fates(corpus, len(rows))
    tagged = [row.get("style") is not None for row in rows]
    twice = [bool(row.get("twice")) for row in rows]
    assert tagged.count(True) == 12
    assert twice.count(True) == 8
    expected = [a or b for a, b in zip(tagged, twice, strict=True)]
    assert [found == REFUSED for found in fate] == expected


def test_strict_asks_for_all_and_nothing_left_is_an_error(
    tmp_path: Path, rng: random.Random, mistral: Path
) -> None:
    rows, good = some_rows(rng)
    path = numbered(tmp_path / "a.jsonl", rows)
    told = f"{good.count(False)} records? cannot be written"
    with pytest.raises(DataError, match=told) as raised:
        build(tmp_path / "c", path, tokenizer=str(mistral), strict=True)
    assert raised.value.exit_code == ExitCode.DATA
    bad = [row for row, taken in zip(rows, good, strict=True) if not taken]
    path = numbered(tmp_path / "b.jsonl", bad)
    with pytest.raises(DataError, match="nothing to keep"):
        build(tmp_path / "c", path, tokenizer=str(mistral))
    assert not (tmp_path / "c").exists()


def test_a_tokenizer_without_a_template_still_ends_the_work(
    tmp_path: Path, rng: random.Random
) -> None:
    folder = write_tokenizer(tmp_path / "t", llama3_like())
    path = numbered(tmp_path / "a.jsonl", [exchange_row("a tea", "a book") for _ in range(3)])
    with pytest.raises(UsageError, match="no chat template"):
        build(tmp_path / "c", path, tokenizer=str(folder))


def test_each_corpus_is_encoded_with_its_own_tokenizer(
    tmp_path: Path, rng: random.Random, mistral: Path
) -> None:
    """Even when two are made in one place by one program."""
    rows = [exchange_row(prose(rng, False, 2), prose(rng, True, 2)) for _ in range(20)]
    path = numbered(tmp_path / "a.jsonl", rows)
    other = write_tokenizer(tmp_path / "t", llama3_like())
    build(tmp_path / "c", path, tokenizer=str(other), template="llama3")
    again = build(tmp_path / "c", path, tokenizer=str(mistral), overwrite=True)
    alone = build(tmp_path / "d", path, tokenizer=str(mistral))
    ids = [corpus.split("train").ids(0).tolist() for corpus in (again, alone)]
    assert ids[0] == ids[1]


def test_half_a_weight_leaves_its_conversation_out_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not learned whole, not learned at all in silence."""
    rows = sample_chats(12)
    rows[4]["messages"][1]["weight"] = 0.5
    rows[7]["messages"][1]["weight"] = 0
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path)
    assert corpus.manifest.info["ledger"]["failed"] == {"bad row": 1}
    assert "failed 1 (bad row 1)" in " ".join(capsys.readouterr().err.split())
    (row,) = rows_of(corpus.folder / "dropped.jsonl")
    assert row["source"].endswith("a.jsonl:5")
    assert row["detail"] == (
        "message 2 has weight 0.5; only 0 (read, not learned) and 1 are understood"
    )
    with pytest.raises(DataError, match="1 record cannot be read, and --strict"):
        build(tmp_path / "d", path, strict=True)
