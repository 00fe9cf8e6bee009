"""What can be wrong with training rows is looked for in the real ones, before the first step.

A wrong template, a beginning written twice or a turn whose end nobody learns spoil a bot without
any error; each has a check here, and each check one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatbench import console
from chatbench.conversation import Message, exchange, parse_messages
from chatbench.corpus.shards import Corpus, Ids, Weights
from chatbench.errors import IntegrityError, UsageError
from chatbench.text.chat_templates import has_template
from chatbench.text.template import render
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import PackedRows, Row, Tally, borders_of

# How much of the data is looked at.
_DOCUMENTS = 1000
_CONVERSATIONS = 50
_REPLIES = 4
_ROWS = 32
_TEMPLATE_HINT = "give the chat template that belongs to the model with --template"
_DATA_HINT = "preprocess the data with this model's tokenizer, or give the .jsonl itself"
# Looked at where no conversation is held out.
_EXAMPLE = (*exchange("Is the shop open?", "Yes. 开着。"), *exchange("谢谢", "不客气！"))


def preflight(rows: PackedRows, corpus: Corpus, vocab_size: int, train_on: str) -> None:
    """Check what a supervised finetune is about to learn, and say how much that is.

    `vocab_size`: the model's. Raises IntegrityError for the first thing that is wrong.
    """
    if not rows.count():
        return  # nothing to learn is for the plan to refuse
    check_ids(corpus, vocab_size)
    check_conversations(corpus)
    for number in range(min(_ROWS, rows.count())):
        check_row(rows.row(0, number))
    check_share(rows.tally, train_on)
    console.say(learned(rows.tally))


def learned(tally: Tally) -> str:
    """How much of the rows is learned, in one line."""
    share = tally.learned / tally.tokens
    return (
        f"learned: {share:.0%} of {console.format_count(tally.tokens)} tokens, "
        f"{console.counted(tally.replies, 'reply', 'replies')}"
    )


def check_ids(corpus: Corpus, vocab_size: int) -> None:
    """Every id has its row in the model's tables."""
    for name in ("train", "val"):
        largest = corpus.split(name).largest()
        if largest >= vocab_size:
            raise IntegrityError(
                f"the data hold the token {largest}, but the model knows only {vocab_size:,} "
                "tokens",
                hint=_DATA_HINT,
            )


def check_conversations(corpus: Corpus) -> None:
    """What is learned of conversations fits how `chat` asks; texts alone need no template."""
    tokenizer = corpus.tokenizer
    if not has_template(tokenizer):
        return
    for name in ("train", "val"):
        split = corpus.split(name)
        for number in _spread(len(split)):
            ids, weights = split.ids(number), split.weights(number)
            if not weights[:1].any():  # of a text the first token is learned
                _check_ends(ids, weights, tokenizer)
                _check_beginnings(ids, tokenizer)
    split, checked = corpus.split("val"), 0
    for number, row in enumerate(corpus.rows("val")):
        if "messages" in row:
            _check_written(tokenizer, parse_messages(row["messages"]), split.ids(number))
            checked += 1
            if checked == _CONVERSATIONS:
                break
    if not checked:
        _check_written(tokenizer, _EXAMPLE)
    _tell_special(tokenizer)


def _spread(count: int) -> list[int]:
    """Numbers from all over a split."""
    return sorted({number * count // _DOCUMENTS for number in range(_DOCUMENTS)} if count else [])


def _check_ends(ids: Ids, weights: Weights, tokenizer: Tokenizer) -> None:
    """Who never learns to end a turn talks on for ever."""
    for _, end in borders_of(weights):
        last = int(ids[end - 1])
        if last not in tokenizer.stops:
            spelled = console.visible(tokenizer.decode([last]))
            raise IntegrityError(
                f"a reply is learned without a token that ends it, up to {spelled!r}",
                hint=_TEMPLATE_HINT,
            )


def _check_beginnings(ids: Ids, tokenizer: Tokenizer) -> None:
    """A beginning stands first, or after an end, as where a template begins every question."""
    begin = _beginning(tokenizer)
    for place in [] if begin is None else np.flatnonzero(ids == begin).tolist():
        if place and int(ids[place - 1]) not in tokenizer.stops:
            raise IntegrityError(
                f"the token that begins texts stands again in a conversation, as token {place + 1}",
                hint=_TEMPLATE_HINT,
            )


def _beginning(tokenizer: Tokenizer) -> int | None:
    """The token that the family puts before every text, unless it ends texts as well."""
    first = tokenizer.text_prefix[:1]
    return first[0] if first and first[0] not in tokenizer.stops else None


def _check_written(
    tokenizer: Tokenizer, messages: Sequence[Message], stored: Ids | None = None
) -> None:
    """The chat template writes the turns as they are stored, and asks for every reply in just the
    tokens that stand before it."""
    if stored is not None and render(tokenizer, messages).ids != stored.tolist():
        raise IntegrityError(
            "the conversations of the data are not written in the chat template of the model",
            hint=_DATA_HINT,
        )
    replies = [number for number, m in enumerate(messages) if m.role == "assistant"]
    for number in replies[:_REPLIES]:
        before = [Message(message.role, message.content, 0) for message in messages[:number]]
        try:
            prompt = tokenizer.template.prompt(before)
            turns = [*before, Message("assistant", messages[number].content)]
            rendered = render(tokenizer, turns)
        except UsageError:
            continue  # the template does not take a conversation that ends here
        place = len(prompt)
        begins = borders_of(np.array(rendered.weights))[-1:, 0].tolist()
        if rendered.ids[:place] != prompt or begins != [max(1, place)]:
            raise IntegrityError(
                "chat asks for a reply in other tokens than stand before it in training",
                hint=_TEMPLATE_HINT,
            )


def _tell_special(tokenizer: Tokenizer) -> None:
    """Nothing here depends on them, but other programs may."""
    begin = _beginning(tokenizer)
    if begin is not None and tokenizer.template.prompt(_EXAMPLE[:1])[:1] != [begin]:
        console.notice(
            "the chat template does not write the token that the model's texts begin with; chat "
            "leaves it out as well"
        )
    pad = tokenizer.files.token("pad_token")
    ends = render(tokenizer, _EXAMPLE)
    last = ends.ids[int(borders_of(np.array(ends.weights))[-1, 1]) - 1]
    if pad is not None and tokenizer.controls.get(pad) == last:
        console.notice(
            f"{console.visible(pad)} both pads rows and ends replies: programs that take padding "
            "out of the loss would not learn where replies end"
        )


def check_row(row: Row) -> None:
    """Nothing that fills a row up is learned, and what is learned follows what is read."""
    here = row.document > 0
    if row.weights[~here].any():
        raise IntegrityError("a row learns what only fills it up", hint=_DATA_HINT)
    same = (row.document[1:] == row.document[:-1]) & here[1:]
    if (row.ids[1:][same] != row.targets[:-1][same]).any():
        raise IntegrityError("a row learns other tokens than come next in it", hint=_DATA_HINT)
    if not (np.isfinite(row.weights).all() and (row.weights >= 0).all()):
        raise IntegrityError("a row weighs tokens by no numbers", hint=_DATA_HINT)


def check_share(tally: Tally, train_on: str) -> None:
    """Questions are read, replies are learned."""
    if train_on != "all" and tally.of_chats and tally.of_replies >= tally.of_chats:
        raise IntegrityError(
            "every token of the conversations is learned, the questions as well",
            hint="if that is meant, say --train-on all",
        )
    if not tally.learned:
        raise IntegrityError("no token of the data is learned", hint=_DATA_HINT)
