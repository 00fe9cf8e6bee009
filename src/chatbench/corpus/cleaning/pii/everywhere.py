"""Masking what is not a document: columns, names of files, rows that could not be read."""

from __future__ import annotations

import re
from typing import Any

from chatbench.corpus.cleaning.pii.finder import masked
from chatbench.corpus.cleaning.repair import mended

_DEEPEST = 100
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\[nrtbf]")


def masked_value(value: Any, depth: int = 0) -> Any:
    """A value of JSON without personal data: in strings, numbers and keys, at any depth.

    Strings are mended first and JSON's escapes undone, since both can hide a number from the
    finder. What lies deeper than 100 levels becomes None.
    """
    if value is None or isinstance(value, bool):
        return value
    if depth > _DEEPEST:
        return None
    if isinstance(value, str):
        return masked(mended(_ESCAPED.sub(_plain, value))[0])[0]
    if isinstance(value, list | tuple):
        return [masked_value(entry, depth + 1) for entry in value]
    if isinstance(value, dict):
        return {
            masked_value(key, depth + 1): masked_value(entry, depth + 1)
            for key, entry in value.items()
        }
    told = masked(str(value))[0]
    return value if told == str(value) else told


def _plain(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else " "
