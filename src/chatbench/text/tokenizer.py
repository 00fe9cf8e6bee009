"""Byte-level BPE in Hugging Face layout, in which text can never become a control token."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.storage import pretty_json, write_file
from chatbench.text.splitting import QWEN2_PATTERN, byte_alphabet, refuse_surrogates
from chatbench.text.template import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatbench.text.bpe_training import WordCounts
    from chatbench.text.fast_encoding import FastEncoder

CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """Text ↔ ids. `encode` treats everything as text; control tokens exist only by id."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        content = json.loads(backend.to_str())
        content["added_tokens"] = []
        content["post_processor"] = None
        self._text_only = Backend.from_str(json.dumps(content))
        self._fast: FastEncoder | None = None
        self.end_of_text = self._control_id(END_OF_TEXT)
        self.turn_start = self._control_id(TURN_START)
        self.turn_end = self._control_id(TURN_END)
        self.control_ids = frozenset(self._backend.get_added_tokens_decoder())

    def _control_id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise IntegrityError(
                f"the tokenizer has no {token} token, which chat turns need",
                hint="use a tokenizer trained by chatbench or one of the Qwen family",
            )
        return int(found)

    @property
    def vocab_size(self) -> int:
        """Entries, control tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control-token lookalikes in it stay text. Raises DataError for lone
        surrogates."""
        try:
            return list(self._text_only.encode(text, add_special_tokens=False).ids)
        except TypeError:
            refuse_surrogates(text)
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, in parallel."""
        ids, starts = self.encode_arrays(texts)
        flat, borders = ids.tolist(), starts.tolist()
        return [flat[a:b] for a, b in pairwise(borders)]

    def encode_arrays(
        self, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """`encode` of each as one array (N,); text d owns ids[starts[d]:starts[d + 1]].

        Large volumes go through gigatoken where it gives the same ids; see fast_encoding.py.
        """
        if self._fast is None:
            from chatbench.text.fast_encoding import FastEncoder

            self._fast = FastEncoder(self._text_only)
        return self._fast.encode(texts)

    def split_words(self, text: str) -> list[str]:
        """The pieces of `text` within which merges are made; slow."""
        normalizer, splitter = self._text_only.normalizer, self._text_only.pre_tokenizer
        normal = normalizer.normalize_str(text) if normalizer else text
        pieces = splitter.pre_tokenize_str(normal) if splitter else [(normal, None)]
        alphabet = byte_alphabet()
        return [bytes(alphabet[c] for c in piece).decode() for piece, _ in pieces]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for; control tokens stand for none."""
        alphabet = byte_alphabet()
        table = [b""] * self.vocab_size
        for token, number in self._text_only.get_vocab().items():
            if number not in self.control_ids:
                table[number] = bytes(alphabet[c] for c in token)
        return table

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens and bytes that are not UTF-8 are left out."""
        table = self.token_bytes
        return b"".join(table[number] for number in ids).decode("utf-8", errors="ignore")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def to_bytes(self) -> bytes:
        """`tokenizer.json` as it is saved."""
        return (self._backend.to_str(pretty=True) + "\n").encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what decides ids: the tokenizer in canonical JSON."""
        canonical = json.dumps(json.loads(self._backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path, context: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [TURN_START, TURN_END],
            "clean_up_tokenization_spaces": False,
            **({"model_max_length": context} if context else {}),
        }
        write_file(folder / TOKENIZER_FILE, self.to_bytes())
        write_file(folder / "tokenizer_config.json", pretty_json(config))
        write_file(folder / "chat_template.jinja", CHAT_TEMPLATE.encode())


class StreamDecoder:
    """Ids in, text out, whole characters only; concatenated pieces equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def push(self, number: int) -> str:
        """The text that became certain with this id; bytes of a half character are held back."""
        return self._decoder.decode(self._bytes[number])


def open_tokenizer(place: Path) -> Tokenizer:
    """Read a tokenizer.json, or the one in folder `place`. Raises IntegrityError when it is absent
    or unreadable."""
    path = place if place.is_file() else place / TOKENIZER_FILE
    if not path.is_file():
        if not place.exists():
            raise IntegrityError(
                f"{place} does not exist",
                hint=f"name a {TOKENIZER_FILE} or a folder that holds one",
            )
        raise IntegrityError(
            f"{place} has no {TOKENIZER_FILE}, so its ids cannot be turned into text",
            hint="copy the tokenizer.json the model was trained with into it",
        )
    try:
        return Tokenizer(Backend.from_buffer(path.read_bytes()))
    except (IntegrityError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise IntegrityError(f"{path} is not a readable tokenizer: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, Qwen2's split, ChatML's tokens.

    `vocab_size` counts the control tokens; a small text may yield fewer entries. The merges are
    those of the trainer of `tokenizers` as long as no word is longer than
    `bpe_training.LONGEST_WORD` bytes and no more than MOST_WORDS words are distinct.
    Raises DataError for lone surrogates.
    """
    from chatbench.text.bpe_training import count_words

    return train_from_counts(count_words(texts), vocab_size)


def train_from_counts(words: WordCounts, vocab_size: int) -> Tokenizer:
    """`train_tokenizer` on words that are already counted."""
    import numpy as np

    from chatbench.text.bpe_training import in_alphabet, learn_merges

    # Ids in the order of the stand-ins, as `tokenizers` numbers its alphabet.
    entries = [bytes([byte]) for _, byte in sorted(byte_alphabet().items())]
    none = np.zeros((0, 3), np.uint32)
    wanted = max(0, vocab_size - len(CONTROL_TOKENS) - len(entries))
    merges: dict[tuple[int, int], None] = {}
    for left, right, token in learn_merges(words, entries, none, wanted).tolist():
        if token == len(entries):
            entries.append(entries[left] + entries[right])
        # A merge made again takes its later place, as in the trainer of `tokenizers`.
        merges.pop((left, right), None)
        merges[left, right] = None
    spelled = [in_alphabet(content) for content in entries]
    backend = Backend(
        models.BPE(
            vocab={spelling: number for number, spelling in enumerate(spelled)},
            merges=[(spelled[left], spelled[right]) for left, right in merges],
        )
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    )
    return Tokenizer(backend)
