"""Personal data and secrets in English and Chinese text: counted, or replaced by placeholders.

A net with holes. It finds what has a form that can be checked: e-mail and IP addresses, telephone
numbers, Chinese resident ids, payment cards, IBANs, keys and passwords. It does not find names,
postal addresses, birth dates, descriptions of people, passwords that are plain words, or numbers
that only their surroundings reveal. Masked text is not anonymous text.
"""

from chatbench.corpus.cleaning.pii.finder import find, scrub
from chatbench.corpus.cleaning.pii.found import Found

__all__ = ["Found", "find", "scrub"]
