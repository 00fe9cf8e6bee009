"""Supervised finetuning: likelihood of the replies in conversations."""

from __future__ import annotations

from chatbench import console
from chatbench.corpus.shards import TokenSplit
from chatbench.settings import FinetuneSettings
from chatbench.text.chat_templates import has_template
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import PackedRows, Tally
from chatbench.train.likelihood import Texts
from chatbench.train.material import Given
from chatbench.train.preflight import preflight


def supervised(given: Given) -> Texts:
    """Packed conversations, checked; what holds nothing to learn is left out and told.

    Raises as `preflight`.
    """
    rows, held = (
        packed(
            given.settings, given.corpus.split(name), given.corpus.tokenizer, given.seq_len,
            tag_dropout=dropout,
        )
        for name, dropout in (("train", given.settings.tag_dropout), ("val", 0.0))
    )  # fmt: skip
    for line in told(rows.tally, given.seq_len):
        console.notice(line)
    preflight(rows, given.corpus, given.model.config.vocab_size, given.settings.train_on)
    return Texts(rows, held, given.corpus.tokenizer)


def packed(
    settings: FinetuneSettings, split: TokenSplit, tokenizer: Tokenizer, seq_len: int,
    tag_dropout: float = 0.0,
) -> PackedRows:  # fmt: skip
    """Rows of conversations, cut where the template begins turns; texts alone need no template."""
    template = tokenizer.template if has_template(tokenizer) else None
    return PackedRows(
        split, seq_len, template.turn_start if template else None, settings.seed,
        user_turn=template.user_turn if template else (), train_on=settings.train_on,
        tag_dropout=tag_dropout,
    )  # fmt: skip


def told(tally: Tally, seq_len: int) -> list[str]:
    """What became of conversations that are not learned whole."""
    lines = []
    if tally.cut:
        lines.append(
            f"{tally.cut:,} conversations are longer than a row of {seq_len:,} tokens: cut into "
            f"{tally.pieces:,} pieces, in which {tally.orphans:,} replies stand without their "
            "question"
        )
    if tally.skipped:
        lines.append(
            f"{tally.skipped:,} texts and pieces hold no reply to learn from, they were left out"
        )
    return lines
