"""Real weights and a real vocabulary, through our files into llama.cpp.

The shared data are no part of the repository; without them these tests skip.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from export.families import random_model, random_strings
from export.test_llama_cpp import load
from model.test_stories260k import hub_weights, pieces
from safetensors.torch import save_file
from text.foreign import write_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from chatbench.export.run import export
from chatbench.model.config import ModelConfig
from chatbench.model.folder import stored_weights, write_model
from chatbench.settings import ExportSettings
from chatbench.text.tokenizer import open_tokenizer
from conftest import SHARED_DATA

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
STORIES, GPT2 = SHARED_DATA / "stories260k", SHARED_DATA / "gpt2-tokenizer"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_dir() or not GPT2.is_dir(), reason="no shared data here"),
]


def stories_tokenizer(path: Path) -> Backend:
    """The 512 pieces as a tokenizer.json, its merges made from the scores."""
    table = pieces(path)
    entries = [piece.decode().replace(" ", "▁") for _, piece in table]
    entries[:3] = ["<unk>", "<s>", "</s>"]
    vocab = {entry: number for number, entry in enumerate(entries)}
    best_first = sorted(range(259, len(entries)), key=lambda number: -table[number][0])
    merges = [
        (entries[number][:cut], entries[number][cut:])
        for number in best_first
        for cut in range(1, len(entries[number]))
        if entries[number][:cut] in vocab and entries[number][cut:] in vocab
    ]
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in entries[:3]])
    return backend


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """stories260K in llama.cpp, by way of a hub folder and of our GGUF."""
    folder = tmp_path_factory.mktemp("stories260k")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "add_bos_token": True}  # fmt: skip
    write_tokenizer(folder, (stories_tokenizer(STORIES / "tok512.bin"), settings))
    config, weights = hub_weights((STORIES / "stories260K.bin").read_bytes())
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    out = folder.with_name("stories.gguf")
    return load(
        export(ExportSettings(model=str(folder), out=str(out), quantize="f32", verify=True))
    )


@pytest.mark.parametrize("number", range(4))
def test_real_weights_tell_the_reference_stories(stories: Any, number: int) -> None:
    wanted = json.loads((STORIES / "reference.json").read_text("utf-8"))["greedy"][number]
    ids = stories.tokenize(wanted["prompt"].encode(), add_bos=True, special=False)
    stories.reset()
    stories.eval(ids)
    while len(ids) <= wanted["steps"]:
        ids.append(int(stories.scores[len(ids) - 1].argmax()))
        stories.eval(ids[-1:])
    told = stories.detokenize(ids).decode()
    # The reference was kept without the line end that closes it.
    assert told.strip() == wanted["output"].strip()


def test_the_real_gpt2_vocabulary_gives_the_published_ids(
    tmp_path: Path, rng: random.Random
) -> None:
    vocab = json.loads(gzip.decompress((GPT2 / "encoder.json.gz").read_bytes()))
    lines = gzip.decompress((GPT2 / "vocab.bpe.gz").read_bytes()).decode().splitlines()[1:]
    backend = Backend(models.BPE(vocab=vocab, merges=[tuple(line.split()) for line in lines]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    place = write_tokenizer(tmp_path / "tokenizer", (backend, {"eos_token": "<|endoftext|>"}))
    tokenizer = open_tokenizer(place)
    config = ModelConfig(len(vocab), 1, 32, 2, 2, 16, 32, 256)
    write_model(tmp_path / "m", config, stored_weights(random_model(config, rng)), tokenizer)
    out = export(ExportSettings(
        model=str(tmp_path / "m"), out=str(tmp_path / "m.gguf"), quantize="q8_0", verify=True
    ))  # fmt: skip
    llama = load(out, context=64)
    texts = (GPT2 / "test-vectors.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (GPT2 / "test-vectors.out").read_text("utf-8").split("\n")
    ids = [[int(number) for number in line.split()] for line in lines]
    for text, wanted in zip(texts, ids, strict=True):
        assert tokenizer.encode(text) == wanted
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == wanted
    for text in random_strings(rng, 1000):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert theirs == tokenizer.encode(text), text
