"""Tokenizers in Hugging Face layout, in which text can never become a control token."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.text.marking import Marker, parse_backend, text_only
from chatbench.text.pieces import Spelling, find_decoder, spell
from chatbench.text.special_tokens import CONTROL_TOKENS, find_special_tokens
from chatbench.text.splitting import QWEN2_PATTERN, byte_alphabet, refuse_surrogates
from chatbench.text.template import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START
from chatbench.text.tokenizer_files import (
    TOKENIZER_FILE,
    TOKENIZER_LIMIT,
    TokenizerFiles,
    read_bounded,
    read_files,
    write_files,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatbench.text.bpe_training import WordCounts
    from chatbench.text.chat_templates import ChatTemplate
    from chatbench.text.fast_encoding import FastEncoder

# Tables have a row for each id; the largest published vocabularies have some 300,000.
MOST_IDS = 1 << 24


class Tokenizer:
    """Text ↔ ids. `encode` treats everything as text; control tokens exist only by id.

    `controls` holds every added token by name, `control_ids` those that text never becomes (see
    special_tokens.py), `hidden_ids` those that are not shown, `stops` those that end a reply;
    `end_of_text` ends a document, and a plain text follows `text_prefix`. `turn_start` and
    `turn_end` exist where ChatML's tokens do. `settings` is tokenizer_config.json;
    `template_source` the chat template found beside it, or what the user named instead.
    Raises IntegrityError for kinds that cannot be decoded exactly.
    """

    turn_start: int
    turn_end: int

    def __init__(self, backend: Backend, files: TokenizerFiles | None = None) -> None:
        self._backend = backend
        self.files = files or TokenizerFiles()
        vocab = backend.get_vocab(with_added_tokens=True)
        self._size = max(vocab.values(), default=-1) + 1
        if self._size > MOST_IDS:
            raise IntegrityError(f"the tokenizer numbers its entries up to {self._size - 1:,}")
        self._content = parse_backend(backend)
        listed = self._content["added_tokens"]
        names = {token["content"] for token in listed}
        # In one of ours every added token controls. Under a ChatML that was given to a base from
        # elsewhere some may be text, such as runs of spaces.
        ours = self.template_source is None or (
            self.template_source in (CHAT_TEMPLATE, "chatml") and all(t["special"] for t in listed)
        )
        self.is_native = ours and names.issuperset(CONTROL_TOKENS)
        special = find_special_tokens(self._content, vocab, self.files, self.is_native)
        self._decoder = find_decoder(self._content)
        self._added = special.added
        self.controls = {token["content"]: int(token["id"]) for token in special.added}
        self.control_ids, self.hidden_ids = special.control_ids, special.hidden
        self.stops = special.stops
        self.end_of_text = special.end_of_text
        self.text_prefix = special.text_prefix
        if names.issuperset(CONTROL_TOKENS):
            self.turn_start, self.turn_end = vocab[TURN_START], vocab[TURN_END]
        self._text_only = text_only(self._content, special.added, special.control_ids)
        self._fast: FastEncoder | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json as it was read; empty for a tokenizer without one."""
        return self.files.settings

    @property
    def template_source(self) -> str | None:
        """Jinja text, or the name or path of the template that was asked for."""
        return self.files.template_source

    @cached_property
    def template(self) -> ChatTemplate:
        """How conversations are written. Raises UsageError when the model has no way."""
        from chatbench.text.chat_templates import choose_template

        return choose_template(self)

    @property
    def vocab_size(self) -> int:
        """The highest id + 1, control tokens included."""
        return self._size

    @cached_property
    def spelling(self) -> Spelling:
        """What each id stands for."""
        vocab = self._backend.get_vocab(with_added_tokens=True)
        return spell(self._decoder, vocab, self.hidden_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control-token lookalikes in it stay text. Raises DataError for lone
        surrogates."""
        return list(self._encoded(text).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and for each id the characters (start, end) of `text` it stands for: several
        ids may stand for one character, a space put before the text for its first character."""
        found = self._encoded(text)
        return list(found.ids), list(found.offsets)

    def _encoded(self, text: str) -> Any:
        try:
            return self._text_only.encode(text, add_special_tokens=False)
        except TypeError:
            refuse_surrogates(text)
            raise

    def encode_marked(
        self, parts: Sequence[tuple[str, bool]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the joined parts (text, is_markup), and the characters of the whole each stands
        for. Control tokens are recognised in markup alone; see marking.py."""
        return self.encode_marked_batch([parts])[0]

    def encode_marked_batch(
        self, texts: Sequence[Sequence[tuple[str, bool]]]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_marked` of each, in parallel."""
        return [(marked.ids, marked.offsets) for marked in self._marker.encode(texts)]

    @cached_property
    def _marker(self) -> Marker:
        return Marker(self._content, self._added, self.control_ids)

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
            if self.control_ids != set(self.controls.values()):
                self._fast.reason = "some of its added tokens are text"
        return self._fast.encode(texts)

    def split_words(self, text: str) -> list[str]:
        """The pieces of `text` within which merges are made; slow."""
        normalizer, splitter = self._text_only.normalizer, self._text_only.pre_tokenizer
        normal = normalizer.normalize_str(text) if normalizer else text
        pieces = splitter.pre_tokenize_str(normal) if splitter else [(normal, None)]
        alphabet = byte_alphabet()
        return [bytes(alphabet[c] for c in piece).decode() for piece, _ in pieces]

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for inside a text; special tokens stand for none."""
        return self.spelling.entries

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens, ids beyond the vocabulary and bytes that are not UTF-8
        are left out, and so is the space that encoding puts before a text."""
        stream = self.stream()
        return "".join(map(stream.push, ids))

    def stream(self, *, begun: bool = False) -> StreamDecoder:
        """A decoder for ids that arrive one at a time; `begun` when they go on with a text, whose
        first space is then no artefact of encoding."""
        return StreamDecoder(self, begun=begun)

    def opening_space(self, number: int) -> int:
        """Bytes that id `number` stands for less at the beginning of a text."""
        entries, first, strip = self.spelling
        data = first.get(number, entries[number])
        spaces = len(data) - len(data.lstrip(b" "))
        return len(entries[number]) - len(data) + min(strip, spaces)

    def to_bytes(self) -> bytes:
        """`tokenizer.json` as it is saved."""
        return (self._backend.to_str(pretty=True) + "\n").encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what decides ids: the tokenizer in canonical JSON."""
        canonical = json.dumps(json.loads(self._backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path, context: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, so that transformers
        opens the folder. What another family's files said is kept; `context` is added to it."""
        own = {k: v for k, v in self.settings.items() if k != "chat_template"}
        length = {"model_max_length": context} if context else {}
        if self.is_native:
            ours = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": TURN_END,
                "pad_token": END_OF_TEXT,
                "additional_special_tokens": [TURN_START, TURN_END],
                "clean_up_tokenization_spaces": False,
            }
            own.pop("model_max_length", None)
            config = {**ours, **length, **own, **ours}
            template: str | None = CHAT_TEMPLATE
        else:
            template = self._saved_template()
            if not own:
                names = {number: name for name, number in self.controls.items()}
                own = {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "eos_token": names[self.end_of_text],
                    "clean_up_tokenization_spaces": False,
                }
            config = {**length, **own}
        write_files(folder, self.to_bytes(), config, template)

    def _saved_template(self) -> str | None:
        """The template in use as Jinja text."""
        if self.files.given_template is None:
            return self.files.own_template
        from chatbench.text.chat_templates import template_text

        return template_text(self.files.given_template, self)


class StreamDecoder:
    """Ids in, text out, whole characters only; concatenated pieces equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, begun: bool = False) -> None:
        self._bytes, self._first, strip = tokenizer.spelling
        self._strip = 0 if begun else strip
        self._hidden = tokenizer.hidden_ids
        self._begun = begun
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def push(self, number: int) -> str:
        """The text that became certain with this id; bytes of a half character are held back."""
        if number in self._hidden or number >= len(self._bytes):
            return ""
        data = self._bytes[number]
        if not self._begun:
            self._begun = True
            data = self._first.get(number, data)
        text = self._decoder.decode(data)
        while text and self._strip:
            text, self._strip = (text[1:], self._strip - 1) if text[0] == " " else (text, 0)
        return text


def open_tokenizer(place: Path | str, template: str | None = None) -> Tokenizer:
    """Read a tokenizer.json, or the one in folder `place`, and the files beside it.

    `template` takes the place of the chat template found there: a name, a path or Jinja text.
    Raises IntegrityError when it is absent, unreadable or of a kind that cannot be decoded exactly.
    """
    place = Path(place)
    path = place if place.is_file() else place / TOKENIZER_FILE
    data = read_bounded(path, TOKENIZER_LIMIT)
    if data is None:
        if not place.exists():
            raise IntegrityError(
                f"{place} does not exist",
                hint=f"name a {TOKENIZER_FILE} or a folder that holds one",
            )
        raise IntegrityError(
            f"{place} has no {TOKENIZER_FILE}, so its ids cannot be turned into text",
            hint="copy the tokenizer.json the model was trained with into it",
        )
    # A file of another name need not belong to what lies beside it.
    files = read_files(path.parent, template) if path.name == TOKENIZER_FILE else (
        TokenizerFiles(given_template=template)
    )  # fmt: skip
    try:
        return Tokenizer(Backend.from_buffer(data), files)
    except (KeyboardInterrupt, SystemExit):
        raise
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error.message}", hint=error.hint) from error
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
