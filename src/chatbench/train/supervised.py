"""Supervised finetuning: likelihood of the replies in conversations."""

from __future__ import annotations

from collections.abc import Sequence

from chatbench import console
from chatbench.corpus.shards import TokenSplit
from chatbench.settings import FinetuneSettings
from chatbench.text.chat_templates import has_template
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import PackedRows, Tally, pack
from chatbench.train.likelihood import Texts
from chatbench.train.material import Given
from chatbench.train.preflight import preflight

# What is empty of rows before it is told, and by how much less it must be in shorter ones. More
# texts than these say nothing new.
_EMPTY, _LESS = 0.25, 0.1
_LOOKED_AT = 2000


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
    lines = told(rows.tally, given.seq_len)
    if given.settings.train.seq_len is not None:
        lines += too_long(rows.places, given.seq_len)
    for line in lines:
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
        alone = console.counted(
            tally.orphans, "reply stands without its", "replies stand without their"
        )
        lines.append(
            f"{console.counted(tally.cut, 'conversation is', 'conversations are')} longer than a "
            f"row of {seq_len:,} tokens: cut into {console.counted(tally.pieces, 'piece')}"
            + (f", in which {alone} question" if tally.orphans else "")
        )
    if tally.skipped:
        left = ("text or piece holds no reply to learn from and stays",
                "texts and pieces hold no reply to learn from and stay")  # fmt: skip
        lines.append(f"{console.counted(tally.skipped, *left)} out")
    return lines


def too_long(places: Sequence[int], seq_len: int) -> list[str]:
    """Whether texts that take so many `places` leave much of their rows empty, and would leave less
    of rows as long as the longest of them."""
    if not places:
        return []
    longest, some = max(places), places[:_LOOKED_AT]
    share, better = (1 - sum(some) / (len(pack(some, n)) * n) for n in (seq_len, longest))
    if share < _EMPTY or better > share - _LESS:
        return []
    return [
        f"{share:.0%} of the places in rows of {seq_len:,} tokens hold nothing, so a step learns "
        f"from fewer than it says: the longest text has {longest:,}, and --seq-len {longest} "
        f"leaves {better:.0%} empty"
    ]
