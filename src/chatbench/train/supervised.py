"""Supervised finetuning: likelihood of the replies in conversations."""

from __future__ import annotations

from chatbench import console
from chatbench.corpus.shards import TokenSplit
from chatbench.settings import FinetuneSettings
from chatbench.text.chat_templates import has_template
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import PackedRows
from chatbench.train.likelihood import Texts
from chatbench.train.material import Given


def supervised(given: Given) -> Texts:
    """Packed conversations; what holds nothing to learn is left out and told."""
    rows, held = (
        _packed(given.settings, given.corpus.split(name), given.corpus.tokenizer, given.seq_len)
        for name in ("train", "val")
    )
    if rows.skipped:
        console.notice(
            f"{rows.skipped} texts and pieces hold no reply to learn from, they were left out"
        )
    return Texts(rows, held, given.corpus.tokenizer)


def _packed(
    settings: FinetuneSettings, split: TokenSplit, tokenizer: Tokenizer, seq_len: int
) -> PackedRows:
    """Rows of conversations, cut where the template begins turns; texts alone need no template."""
    template = tokenizer.template if has_template(tokenizer) else None
    return PackedRows(
        split, seq_len, template.turn_start if template else None, settings.seed,
        user_turn=template.user_turn if template else (), learn_all=settings.train_on == "all",
    )  # fmt: skip
