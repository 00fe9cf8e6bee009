"""The stage that keeps out of a corpus what a trained screen rejects, and the verb that trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from chatbench import console
from chatbench.corpus.cleaning.screen_training import Evaluation, Label, train_on
from chatbench.corpus.document import Counts, Document, Dropped, Failure, Record, Stage
from chatbench.corpus.formats.shapes import label_text
from chatbench.errors import UsageError
from chatbench.storage import require_own
from chatbench.text.screen import KIND, Screen, open_screen

if TYPE_CHECKING:
    from chatbench.settings import ScreenSettings


class ScreenStage:
    """Drops documents any of whose texts a screen rejects."""

    def __init__(self, judge: Screen) -> None:
        self._judge = judge

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        texts = [document.texts() for document in documents]
        judged = self._judge.judge(list(chain.from_iterable(texts))).tolist()
        results: list[Document | Dropped] = []
        start = 0
        for document, own in zip(documents, texts, strict=True):
            worst = max(judged[start : start + len(own)], default=0.0)
            start += len(own)
            rejected = worst > self._judge.threshold
            results.append(Dropped("screened", f"p={worst:.2f}") if rejected else document)
        return results, Counter()


def screen(folder: str) -> Stage:
    """The stage for `preprocess --screen folder`: Dropped("screened", "p=0.97") for a document any
    of whose texts is rejected. Raises UsageError when there is no such folder, IntegrityError when
    it is damaged."""
    return ScreenStage(open_screen(folder))


def train(settings: ScreenSettings) -> Path:
    """The verb `screen`: read labelled rows, train, show how well it does, write the folder.

    Raises UsageError for what cannot be meant, DataError when there are too few examples.
    """
    out = Path(settings.out)
    require_own(out, KIND, overwrite=settings.overwrite)
    rows = _labelled(_records(settings), settings.bad_label, settings.good_label)
    made, evaluation = train_on(
        rows, max_false_positives=settings.max_false_positives, seed=settings.seed
    )
    _show(made, evaluation)
    return made.save(out, replace=settings.overwrite)


def _records(settings: ScreenSettings) -> Iterator[Record]:
    from chatbench.corpus.formats.rows import parse_map
    from chatbench.corpus.sources.blob import ReadOptions
    from chatbench.corpus.sources.reading import read_path

    path = Path(settings.data)
    if not path.is_file():
        raise UsageError(f"{path} is not a file", hint="give a table with a text and a label")
    options = ReadOptions(settings.format, settings.encoding, parse_map(settings.map))
    return read_path(path, settings.data, options)


def _labelled(
    records: Iterable[Record], bad: Sequence[str], good: str | None
) -> list[tuple[str, Label]]:
    """Texts with False for good, True or the category for bad; what has no use is counted."""
    rows: list[tuple[str, Label]] = []
    met: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Failure):
            unused[record.reason] += 1
            continue
        label = label_text(record.meta.get("label"))
        if label is None:
            unused["no label"] += 1
            continue
        met[label] += 1
        if label in bad:
            rows.append((_text(record), label if len(bad) > 1 else True))
        elif good is None or label == good:
            rows.append((_text(record), False))
        else:
            unused["other label"] += 1
    for reason, count in sorted(unused.items()):
        console.notice(f"{console.counted(count, 'row')} not used: {reason}")
    for label in [*bad, *([] if good is None else [good])]:
        if not met[label]:
            known = ", ".join(f"{name} ({count})" for name, count in met.most_common(12))
            raise UsageError(
                f"no row has the label {label}", hint=f"labels found: {known or 'none'}"
            )
    return rows


def _text(document: Document) -> str:
    """What was labelled: the text, or what the user says where the row was read as an exchange."""
    turns = document.messages or ()
    said = [turn.content for turn in turns if turn.role == "user"]
    return said[0] if said else document.joined()


def _show(made: Screen, found: Evaluation) -> None:
    rows = [
        ("examples", f"{found.examples} ({found.bad} bad)"),
        *((f"left out, {reason}", str(count)) for reason, count in found.left_out.items()),
        ("held out", f"{found.held_out} ({found.held_out_bad} bad)"),
        ("precision", f"{found.precision:.3f}"),
        ("recall", f"{found.recall:.3f}"),
        ("F1", f"{found.f1:.3f}"),
        ("false positives", f"{found.false_positive_rate:.3f}"),
        ("area under ROC", f"{found.auc:.3f}"),
        ("threshold", f"{found.threshold:.3f}"),
        *(("category", name) for name in made.categories),
    ]
    console.table("", ("", ""), rows)
    console.say(f"speaks for bad: {', '.join(found.bad_words)}")
    console.say(f"speaks for good: {', '.join(found.good_words)}")
    if not found.enough_good:
        console.notice(
            f"there are too few good examples to promise {found.max_false_positives:.1%} false"
            " positives; the threshold lies at the worst of them"
        )
