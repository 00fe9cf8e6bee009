"""Seconds to train a tokenizer of 32,000 entries: ours beside the trainer of `tokenizers`.

Same texts, same split pattern, and the same tokenizer.json is asserted. Peak memory is that of
ours beyond the texts, taken before the peer has run.

python tests/bench/train_bpe.py PLACE [PLACE ...] [--megabytes 50] [--rounds 3]
"""

from __future__ import annotations

import argparse
import resource

from documents import documents
from pairs import compare
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from chatbench.text.splitting import QWEN2_PATTERN
from chatbench.text.tokenizer import CONTROL_TOKENS, train_tokenizer

ENTRIES = 32_000


def by_tokenizers(texts: list[str]) -> bytes:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=ENTRIES - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    tokens = [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    backend.add_special_tokens(tokens)
    return (backend.to_str(pretty=True) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+")
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = documents(given.places, given.megabytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = train_tokenizer(texts, ENTRIES).to_bytes()
    beyond = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert ours == by_tokenizers(texts), "the tokenizers differ"
    a, b, ratio = compare(
        lambda: train_tokenizer(texts, ENTRIES), lambda: by_tokenizers(texts), given.rounds
    )
    print(
        f"{sum(len(t.encode()) for t in texts) / 1e6:.0f} MB, {ENTRIES} entries: ours {a:.1f} s "
        f"(+{beyond:.0f} MB) · tokenizers {b:.1f} s · {ratio:.1f}× ({given.rounds} pairs)"
    )


if __name__ == "__main__":
    main()
