"""Many texts → one array of ids, through gigatoken where it gives the ids of `tokenizers`.

`tokenizers` decides what is right. gigatoken is compared with it over a probe when it is first
used; texts in which the two compose characters differently always go through `tokenizers`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from chatbench import console
from chatbench.text.splitting import is_doubtful, refuse_surrogates

Ids = npt.NDArray[np.uint32]
Starts = npt.NDArray[np.int64]

# Building the twin costs what tokenising this many characters with `tokenizers` costs.
WORTH_BUILDING = 1 << 18
WORTH_A_NOTICE = 1 << 24
_SLOW_BATCH = 1 << 22

_PROBE_LINES = (
    "The shop opens at nine. Tea, books & paper: 12.50 yuan (or 3 for $30.00)! It's what they'd "
    "say; WE'LL see, I'M sure you've DON'T'VE it'S 'tis rock'n'roll's y'all're o'clock's end'",
    "小店早上九点开门。架子上有茶、书和纸，一共１２本；“多少钱？”他问：《红楼梦》第3回——三千元。",
    "繁體中文也要分得對，例如「龍門客棧」與『茶館』。㐀㐁𠀀𠮷𪚥 〇々〆ヶ",
    "日本語のテキスト、カタカナとひらがな。한국어 문장도 있다. ᄒ\u1161\u11ab ไทยภาษา ภาษาไทย",
    "Привет, мир! Ёлка Й и\u0306 Ελληνικά ἄ α\u0313\u0301 עִבְרִית العَرَبِيَّة",
    "हिन्दी की கி ქართული ⴰⵎ ᚠᚢ 𐍈 𝒳𝟙",
    "e\u0301 a\u0323\u0302 \u1e9b\u0323 \u0344 Å \u212b \u2126 ﬁ ﬀ ſ 'ſ 's's ＡＢＣ１２３ ② Ⅷ ½ ٣٤",
    "\uf900\uf914\ufa0e \u0958 \ufb1d \u2adc \u0f73 q\u0307\u0323 \u0301\u0301\u0300 a\u0334\u0301",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳🇬🇧 ❤️ ™ © ° ± × ÷ → ∀x∈ℝ: ⌈x⌉ ≥ x €£¥₿ \u200b\u200d\ufeff\u00ad",
    "<|endoftext|> <|im_start|>user\n<|im_end|> <|im_end|>\n<|im_start <| |> im_start|>",
    'def f(x, *args, **kw):\n    return {\'a\': x[0] + 1_000, "b": f"{x!r}"}  # ok\n\n\tif (a<b):',
    "https://example.org/a?b=c&d=%20e#f user.name+tag@mail.example 192.168.0.1 2024-02-29",
    "  two   three    four     \t\ttabs \t mixed\u00a0nbsp\u3000wide\u2003em\u2028line\u2029para",
    "\r\n\r\n \r \n  \r\n   x\n \n  \n   y \n\u0085nel\v\f",
    "a\x00b\x01\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x9f end ....... !!!!!! ------ ====== ______ aaaaaaa",
    "▁ ▁▁a a▁ <0x41> <0xE4><0xBD><0xA0> <unk><s>a</s> [INST] x [/INST]\n <|user|>\n</s>",
    "antidisestablishmentarianism HTTPServerError snake_case_name camelCaseName 茶茶茶茶茶茶",
)


def probe_texts() -> list[str]:
    """A few kB of every kind of text: each line alone, all of them in one, and mixed by pairs."""
    pairs = [a[::2] + b for a, b in zip(_PROBE_LINES, reversed(_PROBE_LINES), strict=True)]
    return ["", *_PROBE_LINES, "\n".join(_PROBE_LINES), *pairs]


def _in_worker() -> bool:
    return console.WORKER in os.environ or multiprocessing.parent_process() is not None


class FastEncoder:
    """`encode` of many texts at once. `reason` says why gigatoken is not used, once that is so."""

    def __init__(self, backend: Backend, worth_building: int = WORTH_BUILDING) -> None:
        self._backend = backend
        self._twin: Any = None
        self._worth_building = worth_building
        self._asked = 0
        self._noticed = False
        self.reason: str | None = None
        if _in_worker():
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Starts]:
        """Ids of all texts (N,), and where each starts (D + 1,). Raises DataError for lone
        surrogates. In a worker process everything runs on the calling thread."""
        self._asked += sum(map(len, texts))
        if self._twin is None and self.reason is None and self._asked >= self._worth_building:
            self._build()
        if self._twin is None:
            self._notice_slowness()
            return self._slow(texts)
        doubtful = [place for place, text in enumerate(texts) if is_doubtful(text)]
        if not doubtful:
            return self._fast(texts)
        cleared = list(texts)
        for place in doubtful:
            cleared[place] = ""
        return _spliced(self._fast(cleared), doubtful, self._slow([texts[p] for p in doubtful]))

    def _build(self) -> None:
        try:
            import gigatoken
        except ImportError:
            self.reason = "gigatoken is not installed"
            return
        try:
            twin = gigatoken.Tokenizer.from_json(self._backend.to_str())
            for text in probe_texts():
                ids = self._backend.encode(text, add_special_tokens=False).ids
                if twin.encode_batch([text], parallel=False)[0].to_list() != ids:
                    self.reason = "gigatoken gives other ids with this tokenizer"
                    return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            self.reason = f"gigatoken cannot read this tokenizer: {str(error)[:120]}"
            return
        self._twin = twin

    def _fast(self, texts: Sequence[str]) -> tuple[Ids, Starts]:
        try:
            parallel = False if _in_worker() else None
            rows = self._twin.encode_batch(list(texts), parallel=parallel).layout
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._twin, self.reason = None, f"gigatoken failed: {str(error)[:120]}"
            return self._slow(texts)
        starts = np.asarray(rows.offsets.data, np.int64)
        return np.asarray(rows.content.data, np.uint32)[: starts[-1]], starts

    def _slow(self, texts: Sequence[str]) -> tuple[Ids, Starts]:
        starts = np.zeros(len(texts) + 1, np.int64)
        parts: list[Ids] = [np.zeros(0, np.uint32)]
        batch: list[str] = []
        done = size = 0
        for place, text in enumerate(texts):
            refuse_surrogates(text)
            batch.append(text)
            size += len(text)
            if size >= _SLOW_BATCH or place + 1 == len(texts):
                for encoded in self._backend.encode_batch_fast(batch, add_special_tokens=False):
                    parts.append(np.array(encoded.ids, np.uint32))
                    done += 1
                    starts[done] = len(parts[-1])
                batch, size = [], 0
        return np.concatenate(parts), np.cumsum(starts)

    def _notice_slowness(self) -> None:
        if self.reason and not self._noticed and self._asked >= WORTH_A_NOTICE:
            self._noticed = True
            if not _in_worker():
                console.notice(f"tokenising at a tenth of the usual speed: {self.reason}")


def _spliced(
    main: tuple[Ids, Starts], places: Sequence[int], others: tuple[Ids, Starts]
) -> tuple[Ids, Starts]:
    """`main` with the rows of `others`, in order, in place of its empty rows `places`."""
    ids, starts = main
    lengths = np.diff(starts)
    lengths[list(places)] = np.diff(others[1])
    parts: list[Ids] = []
    begin = 0
    for number, place in enumerate(places):
        end = int(starts[place])
        parts += (ids[begin:end], others[0][others[1][number] : others[1][number + 1]])
        begin = end
    parts.append(ids[begin:])
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
