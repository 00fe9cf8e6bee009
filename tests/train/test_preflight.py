"""Each thing that can be wrong with training rows is found before the first step, and named."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text.foreign import llama3_like, write_tokenizer
from train.test_batches import split_of

from chatbench.conversation import as_json, exchange
from chatbench.corpus.shards import Corpus, ShardWriter, TokenSplit, open_corpus
from chatbench.errors import ExitCode, IntegrityError
from chatbench.text.rendering import RenderedArrays
from chatbench.text.template import Rendered, render, render_texts, reply_prompt
from chatbench.text.tokenizer import Tokenizer, open_tokenizer
from chatbench.train.batches import PackedRows, Row, Tally
from chatbench.train.preflight import (
    check_conversations,
    check_ids,
    check_row,
    check_share,
    learned,
    preflight,
)
from conftest import sample_chats, write_jsonl

CHATS = [
    (*exchange("Is the tea fresh?", "Yes, today's."), *exchange("谢谢", "不客气！")),
    exchange("雨伞多少钱？", "三十元。", system="你是店员。"),
    exchange("Hi", "Hello!"),
]


class Held(Corpus):
    """Documents as a corpus: the same for training and validation."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, documents: Sequence[Rendered],
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:  # fmt: skip
        folder.mkdir(exist_ok=True)
        writer = ShardWriter(folder / "00000.safetensors", tokenizer.vocab_size)
        for ids, weights in documents:
            starts = np.array([0, len(ids)])
            arrays = np.array(ids, np.uint32), starts, np.array(weights, np.uint8)
            writer.add(RenderedArrays(*arrays))
        writer.close()
        self.folder, self.tokenizer, self._rows = folder, tokenizer, rows

    def split(self, name: str) -> TokenSplit:
        return TokenSplit(self.folder)

    def rows(self, name: str) -> Any:
        return iter(self._rows)


def rows_of(corpus: Corpus, **more: Any) -> PackedRows:
    template = corpus.tokenizer.template
    return PackedRows(
        corpus.split("train"), 128, template.turn_start, 0, user_turn=template.user_turn, **more
    )


@pytest.fixture
def llama(tmp_path: Path) -> Tokenizer:
    return open_tokenizer(write_tokenizer(tmp_path / "llama", llama3_like()), "llama3")


@pytest.fixture(params=["chatml", "llama3"])
def either(request: pytest.FixtureRequest, tokenizer: Tokenizer, llama: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "chatml" else llama


def test_sound_rows_pass_and_are_told(
    either: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [render(either, chat) for chat in CHATS]
    rows = [{"messages": as_json(chat)} for chat in CHATS]
    corpus = Held(tmp_path / "data", either, documents, rows)
    preflight(rows_of(corpus), corpus, either.vocab_size, "assistant")
    targets = sum(len(ids) - 1 for ids, _ in documents)
    share = sum(sum(weights) for _, weights in documents) / targets
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"learned: {share:.0%} of {targets} tokens, 4 replies"


def test_a_reply_whose_end_is_not_learned(either: Tokenizer, tmp_path: Path) -> None:
    documents = [render(either, chat) for chat in CHATS]
    ids, weights = documents[0]
    last = max(place for place, weight in enumerate(weights) if weight)
    weights[last] = 0
    corpus = Held(tmp_path / "data", either, documents)
    with pytest.raises(IntegrityError, match="without a token that ends it"):
        preflight(rows_of(corpus), corpus, either.vocab_size, "assistant")
    assert ids[last] in either.stops


def test_a_second_beginning(llama: Tokenizer, tmp_path: Path) -> None:
    begin = llama.controls["<|begin_of_text|>"]
    sound = render(llama, CHATS[0])
    assert [place for place, token in enumerate(sound.ids) if token == begin] == [0]
    check_conversations(Held(tmp_path / "sound", llama, [sound]))
    doubled = Rendered([begin, *sound.ids], [0, *sound.weights])
    with pytest.raises(IntegrityError, match="stands again in a conversation, as token 2;"):
        check_conversations(Held(tmp_path / "doubled", llama, [doubled]))
    # Where a family begins every question, a beginning follows an end.
    turn = [n for n, token in enumerate(sound.ids) if token in llama.stops][1] + 1
    again = Rendered(
        [*sound.ids[:turn], begin, *sound.ids[turn:]],
        [*sound.weights[:turn], 0, *sound.weights[turn:]],
    )
    check_conversations(Held(tmp_path / "again", llama, [again]))


def test_a_template_without_the_familys_beginning_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tokenizer(tmp_path / "llama", llama3_like())
    source = tmp_path / "bare.jinja"
    source.write_text(
        "{%- for m in messages -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>' + "
        "m.content + '<|eot_id|>' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>' -}}{%- endif -%}"
    )
    bare = open_tokenizer(folder, str(source))
    check_conversations(Held(tmp_path / "data", bare, [render(bare, chat) for chat in CHATS]))
    assert "does not write the token that the model's texts begin with" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("pad", ["<|eot_id|>", "<|reserved_special_token_0|>"])
def test_padding_that_is_an_end_is_told(
    tmp_path: Path, pad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tokenizer(tmp_path / "llama", llama3_like(), pad_token=pad)
    padded = open_tokenizer(folder, "llama3")
    check_conversations(Held(tmp_path / "data", padded, [render(padded, CHATS[0])]))
    said = "both pads rows and ends replies" in " ".join(capsys.readouterr().err.split())
    assert said == (pad == "<|eot_id|>")


def test_everything_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = []
    for chat in CHATS:
        ids, weights = render(tokenizer, chat)
        last = max(place for place, weight in enumerate(weights) if weight) + 1
        documents.append(Rendered(ids[:last], [0] + [1] * (last - 1)))
    corpus = Held(tmp_path / "data", tokenizer, documents)
    with pytest.raises(IntegrityError, match="every token of the conversations is learned"):
        preflight(rows_of(corpus), corpus, tokenizer.vocab_size, "assistant")
    preflight(rows_of(corpus, train_on="all"), corpus, tokenizer.vocab_size, "all")
    texts = Held(tmp_path / "texts", tokenizer, list(render_texts(tokenizer, ["tea", "茶"])))
    preflight(rows_of(texts, train_on="all"), texts, tokenizer.vocab_size, "all")


def test_nothing_learned() -> None:
    with pytest.raises(IntegrityError, match="no token of the data is learned"):
        check_share(Tally(tokens=5, of_chats=5), "assistant")


def test_data_in_another_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"messages": as_json(chat)} for chat in CHATS]
    documents = [render(tokenizer, chat) for chat in CHATS]
    check_conversations(Held(tmp_path / "same", tokenizer, documents, rows))
    documents[2] = render(tokenizer, exchange("Hi", "Hello?"))
    with pytest.raises(IntegrityError, match="not written in the chat template of the model"):
        check_conversations(Held(tmp_path / "other", tokenizer, documents, rows))


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_chat_that_asks_otherwise(either: Tokenizer, tmp_path: Path, change: str) -> None:
    template = either.template
    real = template.prompt

    def prompt(messages: Any) -> list[int]:
        ids = real(messages)
        changed = {"longer": [*ids, ids[-1]], "shorter": ids[:-1], "other": [*ids[:-1], 5]}
        return changed[change]

    rows = [{"messages": as_json(chat)} for chat in CHATS]
    corpus = Held(tmp_path / "data", either, [render(either, chat) for chat in CHATS], rows)
    check_conversations(corpus)
    template.prompt = prompt  # type: ignore[method-assign]
    try:
        for held in (corpus, Held(tmp_path / "none", either, [render(either, CHATS[0])])):
            with pytest.raises(IntegrityError, match="chat asks for a reply in other tokens"):
                check_conversations(held)
    finally:
        del template.prompt  # the fixture's, which others use


def test_an_id_the_model_does_not_know(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = Held(tmp_path / "data", tokenizer, [render(tokenizer, chat) for chat in CHATS])
    largest = max(max(render(tokenizer, chat).ids) for chat in CHATS)
    check_ids(corpus, largest + 1)
    with pytest.raises(IntegrityError, match=f"hold the token {largest}, but the model knows"):
        check_ids(corpus, largest)


def test_every_prefix_of_a_conversation_is_what_chat_asks_with(
    either: Tokenizer, rng: random.Random
) -> None:
    """The check itself, spelled out: ids before a reply equal the prompt, over random turns."""
    words = ["tea", " 茶", "7", "\n", "<|im_end|>", "é", "  ", "。", "🫖", "</s>"]
    for _ in range(30):
        turns: list[Any] = []
        for _ in range(rng.randint(1, 3)):
            said = ["".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(2)]
            turns += exchange(*said)
        whole = render(either, turns).ids
        for number in range(1, len(turns), 2):
            prompt = reply_prompt(either, turns[:number])
            assert whole[: len(prompt)] == prompt


def row_of(rng: random.Random) -> Row:
    """Two documents and a stretch that nothing fills."""
    lengths = [rng.randint(3, 9), rng.randint(3, 9)]
    columns = np.zeros((4, 24), np.int64)
    weights, at = np.zeros(24, np.float32), 0
    for name, length in enumerate(lengths, 1):
        ids = np.array([rng.randrange(1, 50) for _ in range(length + 1)])
        place = slice(at, at + length)
        names = np.full(length, name)
        columns[:, place] = ids[:-1], ids[1:], names, np.arange(length)
        weights[place] = 1
        at += length
    ids, targets, document, position = columns
    return Row(ids, targets, weights, document, position)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda row, at: row.weights.__setitem__(23, 1), "only fills it up"),
        (lambda row, at: row.targets.__setitem__(at, 55), "other tokens than come next"),
        (lambda row, at: row.weights.__setitem__(at, np.nan), "by no numbers"),
        (lambda row, at: row.weights.__setitem__(at, -1), "by no numbers"),
    ],
)
def test_rows_that_are_not_what_was_read(
    rng: random.Random, damage: Callable[[Row, int], None], words: str
) -> None:
    row = row_of(rng)
    check_row(row)
    damage(row, rng.randrange(2))  # inside of the first document
    with pytest.raises(IntegrityError, match=words):
        check_row(row)


def test_the_share_counts_what_rows_weigh(rng: random.Random, tmp_path: Path) -> None:
    documents = []
    for _ in range(30):
        length = rng.randint(2, 30)
        documents.append(
            ([rng.randrange(50) for _ in range(length)],
             [0] + [int(rng.random() < 0.4) for _ in range(length - 1)])
        )  # fmt: skip
    rows = PackedRows(split_of(tmp_path, documents), 16, None, 0)
    seen = [rows.row(0, number) for number in range(rows.count())]
    weight = sum(float(row.weights.sum()) for row in seen)
    assert rows.tally.learned == weight
    assert rows.tally.tokens == sum(int((row.document > 0).sum()) for row in seen)
    assert learned(rows.tally).startswith(f"learned: {weight / rows.tally.tokens:.0%} of ")


def test_a_template_that_ends_no_reply_ends_the_command(
    base_run: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    endless = tmp_path / "endless.jinja"
    endless.write_text(
        "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '\\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
        "{%- endif -%}"
    )
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(20))
    run = tmp_path / "run"
    done = cli("finetune", "-m", base_run, "-d", data, "-o", run, "--template", endless)
    assert done.returncode == ExitCode.INTEGRITY, done.stderr
    assert "without a token that ends it" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (run / "config.toml").exists()


def test_a_corpus_of_ours_passes(corpus_folder: Path) -> None:
    check_conversations(open_corpus(corpus_folder))
