"""Columns that become tags: which are asked for, which are there, and what is said of others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from chatbench.corpus.cleaning.stages import tag_value
from chatbench.corpus.document import Document
from chatbench.errors import UsageError

# Of more columns nobody wants to know.
_MOST = 200
_SHOWN = 12


def tag_columns(given: Sequence[str]) -> list[str]:
    """Each once, in the order given: `["style,topic", "style"]` → style, topic; Chinese commas
    part them as well."""
    columns = (column.strip() for entry in given for column in re.split("[,，、]", entry))
    return list(dict.fromkeys(column for column in columns if column))


def columns_of(documents: Iterable[Document]) -> Counter[str]:
    """In how many documents each column says something that a tag could be."""
    found: Counter[str] = Counter()
    for document in documents:
        found.update(column for column in document.meta if tag_value(document, column))
    return found


def counted(found: Counter[str], wanted: Sequence[str]) -> dict[str, int]:
    """The most frequent ones, and those wanted."""
    return dict(found.most_common(_MOST)) | {c: found[c] for c in wanted if found[c]}


class NoColumn(UsageError):
    """Of the columns that are to become tags no document says anything in `missing`."""

    def __init__(self, missing: Sequence[str], there: Mapping[str, int]) -> None:
        self.missing = tuple(missing)
        self.there = dict(there)
        super().__init__(
            f"--tag-column {','.join(missing)}: no document says anything there",
            hint=_told(missing, sorted(there, key=lambda column: (-there[column], column))),
        )


def check_columns(wanted: Sequence[str], there: Mapping[str, int]) -> None:
    """Raises NoColumn for tags that nobody would ever see."""
    missing = [column for column in wanted if not there.get(column)]
    if missing:
        raise NoColumn(missing, there)


def _told(missing: Sequence[str], there: Sequence[str]) -> str:
    if not there:
        return "the data have no columns beside the texts"
    folded = {name.casefold(): name for name in reversed(there)}
    near = [get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5) for name in missing]
    close = dict.fromkeys(folded[name] for names in near for name in names)
    guess = f"did you mean {', '.join(close)}? " if close else ""
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    return f"{guess}columns: {', '.join(there[:_SHOWN])}{more}"
