"""Words for people: what language codes and the reasons of the ledger mean."""

_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "cyrillic": "Cyrillic script",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "latin": "Latin script", "mixed": "mixed scripts", "nl": "Dutch", "no": "Norwegian",
    "none": "no letters", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


def language_name(code: str) -> str:
    """`zh` → `Chinese`; `zh+latin` → `Chinese + Latin script`; unknown codes as they are."""
    return " + ".join(_NAMES.get(part, part) for part in code.split("+"))


# What the reasons mean, by their beginning; those of the reader say enough by themselves.
_MEANINGS = (
    ("duplicate", "the same text as a document that was kept"),
    ("near-duplicate", "nearly the same text as a document that was kept"),
    ("near duplicate", "nearly the same text as a document that was kept"),
    ("empty", "nothing but white space"),
    ("language", "in none of the languages asked for"),
    ("quality", "a rule of Gopher, C4 or FineWeb rejected it"),
    ("shared with held-out", "shares 13 words in a row with validation or test"),
    ("not fluent", "the n-gram model of the corpus found it too unlikely"),
    ("fluency", "the n-gram model found it too unlikely"),
    ("refused by the chat template", "its turns cannot be written in the chat template"),
    ("blocked", "holds a word or phrase of a block list"),
    ("screened", "the trained screen rejected it"),
    ("contaminated", "shares 13 words in a row with a test set"),
    ("compression bomb", "the file grew far beyond its compressed size"),
)


def reason_meaning(reason: str) -> str:
    """One line on why records are left out for this reason; empty when it speaks for itself."""
    return next((meaning for start, meaning in _MEANINGS if reason.startswith(start)), "")
