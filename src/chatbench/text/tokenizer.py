"""Byte-level BPE in Hugging Face layout, in which text can never become a control token."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.storage import pretty_json, write_file
from chatbench.text.template import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# The published Qwen2 split pattern (tokenizer.json of Qwen2), letter for letter: llama.cpp knows
# it as pre-tokenizer "qwen2".
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_FILE = "tokenizer.json"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, released encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return stand_ins | {chr(0x100 + shift): byte for shift, byte in enumerate(others)}


class Tokenizer:
    """Text ↔ ids. `encode` treats everything as text; control tokens exist only by id."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        content = json.loads(backend.to_str())
        content["added_tokens"] = []
        content["post_processor"] = None
        self._text_only = Backend.from_str(json.dumps(content))
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
        """Ids of `text`; control-token lookalikes in it stay text."""
        return list(self._text_only.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, in parallel."""
        encoded = self._text_only.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(e.ids) for e in encoded]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for; control tokens stand for none."""
        alphabet = _byte_alphabet()
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


def open_tokenizer(folder: Path) -> Tokenizer:
    """Read `folder/tokenizer.json`. Raises IntegrityError when it is absent or unreadable."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise IntegrityError(
            f"{folder} has no {TOKENIZER_FILE}, so its ids cannot be turned into text",
            hint="copy the tokenizer.json the model was trained with into it",
        )
    try:
        return Tokenizer(Backend.from_file(str(path)))
    except IntegrityError:
        raise
    except Exception as error:
        raise IntegrityError(f"{path} is not a readable tokenizer: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, Qwen2's split, ChatML's tokens.

    `vocab_size` counts the control tokens; a small text may yield fewer entries.
    """
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    )
    return Tokenizer(backend)
