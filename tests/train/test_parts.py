"""Files that ranks write: torch's own format, whole again however they were cut."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train.parallel_runs import Ranks, codes, heard
from train.test_checkpoint import config_of

from chatbench.errors import IntegrityError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import write_model
from chatbench.model.transformer import GPT, initialise
from chatbench.model.weights import Deferred, write_file
from chatbench.storage import hash_file
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.parts import Part, Parts, write_part


def drawn(rng: random.Random) -> dict[str, Tensor]:
    """Tables, vectors, a number; some with fewer rows than ranks."""
    torch.manual_seed(rng.randrange(1 << 30))
    shapes = [(rng.randint(1, 9), rng.randint(1, 5)), (rng.randint(1, 9),), (1, 3, 2), ()]
    names = ("层.weight", "bias", "cube", "bias/step")
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.float32)
    return {n: torch.randn(s).to(k) for n, s, k in zip(names, shapes, kinds, strict=True)}


def cut(whole: Mapping[str, Tensor], rank: int, size: int) -> Part:
    """Rows as FSDP2 cuts them: as many for each, fewer or none for the last."""
    tensors, begins = dict(whole), dict.fromkeys(whole, 0)
    for name, tensor in whole.items():
        if tensor.ndim:
            rows = -(-len(tensor) // size)
            begins[name] = min(rank * rows, len(tensor))
            tensors[name] = tensor[rank * rows : (rank + 1) * rows]
    return Part(rank, size, tensors, begins)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_are_whole_again(tmp_path: Path, rng: random.Random, size: int) -> None:
    whole = drawn(rng)
    for rank in range(size):
        ((name, entry),) = write_part(tmp_path, cut(whole, rank, size)).items()
        assert entry.bytes == (tmp_path / name).stat().st_size
        assert entry.sha256 == hash_file(tmp_path / name)
    found = Parts(tmp_path)
    assert found.keys() == whole.keys()
    assert list(found.chosen(memory=True)) == ["bias/step"]
    assert set(found.chosen(memory=False)) == whole.keys() - {"bias/step"}
    for name, later in found.deferred().items():
        for tensor in (found[name], later.read()):
            assert tensor.equal(whole[name])
            assert tensor.dtype == whole[name].dtype == later.dtype
        assert (later.shape, later.numel()) == (whole[name].shape, whole[name].numel())


@pytest.mark.parametrize("size", [2, 3])
def test_torch_reads_our_files_and_we_read_its(
    ranks: Ranks, tmp_path: Path, rng: random.Random, size: int
) -> None:
    data = {"seed": rng.randrange(1 << 20), "folder": str(tmp_path)}
    replies = ranks(size, call="trades_files_with_torch", data=data)
    assert codes(replies) == [0] * size, heard(replies)


# -- damage ----------------------------------------------------------------------------------------


def test_a_file_that_is_missing_in_the_middle_is_noticed(
    tmp_path: Path, rng: random.Random
) -> None:
    whole = {"weight": torch.randn(rng.choice([3, 5, 6, 7, 8, 9]), 2)}  # some for each
    files = [next(iter(write_part(tmp_path, cut(whole, rank, 3)))) for rank in range(3)]
    for lost in files[:2]:
        twin = tmp_path / f"without {lost}"
        twin.mkdir()
        for name in files:
            shutil.copy(tmp_path / name, twin)
        (twin / lost).unlink()
        with pytest.raises(IntegrityError, match="does not hold 'weight' whole"):
            Parts(twin)


@pytest.mark.parametrize(
    ("note", "what"),
    [
        (None, "does not say where"),
        ("{", "does not say where"),
        ("[" * 100_000, "does not say where"),
        (json.dumps({"other": {"saved_offsets": [0, 0]}}), "which rows of 'weight'"),
        (json.dumps({"weight": {}}), "which rows of 'weight'"),
        (json.dumps({"weight": {"saved_offsets": [0]}}), "which rows of 'weight'"),
        (json.dumps({"weight": {"saved_offsets": [0, 1]}}), "which rows of 'weight'"),
        (json.dumps({"weight": {"saved_offsets": [-1, 0]}}), "does not hold 'weight' whole"),
        (json.dumps({"weight": {"saved_offsets": [1, 0]}}), "does not hold 'weight' whole"),
        (json.dumps({"weight": {"saved_offsets": ["0", 0]}}), "does not say where"),
        (json.dumps({"weight": {"saved_offsets": [1 << 70, 0]}}), "does not "),
    ],
)
def test_a_file_that_does_not_say_what_it_holds_is_refused(
    tmp_path: Path, note: str | None, what: str
) -> None:
    notes = {} if note is None else {"DCP_SHARDING_INFO": note}
    write_file(tmp_path / "a.safetensors", {"weight": torch.ones(2, 3)}, notes=notes)
    with pytest.raises(IntegrityError, match=what):
        Parts(tmp_path)


def test_parts_of_different_tensors_are_not_put_together(tmp_path: Path) -> None:
    for other in (torch.ones(2, 4), torch.ones(2, 3, dtype=torch.float16), torch.ones(2)):
        for rank, tensor in enumerate((torch.ones(2, 3), other)):
            write_part(tmp_path, Part(rank, 2, {"weight": tensor}, {"weight": 2 * rank}))
        with pytest.raises(IntegrityError, match="does not hold 'weight' whole"):
            Parts(tmp_path)


# -- model folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_model_of_deferred_weights_has_the_same_bytes(
    tokenizer: Tokenizer, tmp_path: Path, rng: random.Random, name: str
) -> None:
    """In several files as well; no more than queries, keys and values are read at once."""
    config = config_of(name, tokenizer.vocab_size)
    model = GPT(config)
    initialise(model, rng.randrange(100))
    weights = {key: p.detach() for key, p in model.named_parameters()}
    asked: list[str] = []

    def read(key: str) -> Tensor:
        asked.append(key)
        return weights[key]

    later = {k: Deferred(w.shape, w.dtype, partial(read, k)) for k, w in weights.items()}
    for most in (1 << 40, rng.randint(2_000, 20_000)):
        folders = [tmp_path / f"{kind}{most}" for kind in ("plain", "deferred")]
        for folder, given in zip(folders, (weights, later), strict=True):
            write_model(folder, config, given, tokenizer, {"a": 1}, largest_shard=most)
        plain, deferred = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
        assert plain == deferred
    assert set(asked) == set(weights)
    assert all(asked.count(key) in (2, 6) for key in weights)
