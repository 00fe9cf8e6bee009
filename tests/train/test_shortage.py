"""Where memory does not suffice, fewer rows are computed at once and the run stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.troubled import Trouble, trainer_of

from chatbench.errors import EnvironmentFault, is_out_of_memory
from chatbench.model.attention import Packing
from chatbench.train.objective import Batch, GlobalBatch

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."


def too_large(rows: int, since: int, error: Exception, *, tries: int = 1) -> Trouble:
    """Memory ends at the `tries`-th micro-batch of more than `rows` rows, from step `since` on."""
    seen = 0

    def trouble(step: int, batch: Batch) -> float:
        nonlocal seen
        if step >= since and len(batch.ids) > rows:
            seen += 1
            if seen >= tries:
                raise error
        return 1.0

    return trouble


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    weights = load_file(run / "model" / "model.safetensors")
    return weights, (run / "metrics.jsonl").read_bytes()


def assert_equal(one: Path, other: Path) -> None:
    (weights, metrics), (expected, wanted) = outcome(one), outcome(other)
    assert metrics == wanted
    assert all(weights[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), MemoryError()])
def test_half_as_many_rows_are_computed_and_the_step_begins_anew(
    corpus_folder: Path, tmp_path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is that of a run with the smaller number, to the bit."""
    trainer_of(
        tmp_path / "short", corpus_folder, rows=8, micro_batch=8, training=too_large(2, 0, error)
    ).fit()
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert ["4 rows" in said[0], "2 rows" in said[1], len(said)] == [True, True, 2]
    trainer_of(tmp_path / "small", corpus_folder, rows=8, micro_batch=2).fit()
    assert_equal(tmp_path / "short", tmp_path / "small")


def test_what_a_broken_off_step_had_summed_up_is_forgotten(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ends in the third of four micro-batches; one of one row after the other is the twin
    that computes the same from there on."""
    once = 100  # Validation is computed in as many rows as well.
    short = too_large(1, 5, torch.OutOfMemoryError(CUDA), tries=3)
    trainer_of(
        tmp_path / "short", corpus_folder, rows=8, micro_batch=2, training=short, eval_every=once
    ).fit()
    twin = trainer_of(tmp_path / "twin", corpus_folder, rows=8, micro_batch=2, eval_every=once)
    make = twin._objective.batch
    monkeypatch.setattr(
        twin._objective, "batch", lambda step: make(step).cut(1 if step >= 5 else 2)
    )
    held_out = list(twin._objective.validation())
    monkeypatch.setattr(
        twin._objective, "validation", lambda: (one for part in held_out for one in part.cut(1))
    )
    twin.fit()
    assert_equal(tmp_path / "short", tmp_path / "twin")


def test_a_resume_goes_on_with_as_many_rows_as_memory_held(
    corpus_folder: Path, tmp_path: Path
) -> None:
    from chatbench.train.checkpoint import load_newest

    def made(run: Path, steps: int) -> Any:
        trouble = too_large(2, 5, torch.OutOfMemoryError(CUDA))
        return trainer_of(run, corpus_folder, rows=8, micro_batch=8, training=trouble, steps=steps)

    run = tmp_path / "parts"
    made(run, 7).fit()
    restored = load_newest(run)
    assert restored is not None
    assert restored.state.micro_batch == 2
    again = made(run, 10)
    again.restore(restored)
    assert max(len(part.ids) for part in again._feed.batch(7).parts) == 2


def test_when_one_row_does_not_fit_a_person_is_told(corpus_folder: Path, tmp_path: Path) -> None:
    trouble = too_large(0, 3, torch.OutOfMemoryError(CUDA))
    with pytest.raises(EnvironmentFault, match=r"one row of 32 tokens at step 3.*--seq-len"):
        trainer_of(tmp_path, corpus_folder, training=trouble).fit()


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    corpus_folder: Path, tmp_path: Path
) -> None:
    trouble = too_large(0, 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer_of(tmp_path, corpus_folder, training=trouble).fit()


def test_what_torch_says_when_memory_ends_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError(CUDA))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("memory format"))
    assert not is_out_of_memory(ValueError(CUDA))


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_batch_is_the_same_rows(packed: bool) -> None:
    ids = torch.arange(5 * 3).reshape(5, 3)
    packing = Packing(ids % 2, ids % 3) if packed else None
    part = Batch(ids, ids + 1, ids / 2, packing)
    whole = GlobalBatch([part, Batch(ids[:2], ids[:2], ids[:2] / 2, None)], 7.0, 21)
    cut = whole.cut(2)
    assert [len(piece.ids) for piece in cut.parts] == [2, 2, 1, 2]
    assert (cut.weight, cut.tokens) == (7.0, 21)
    for name in ("ids", "targets", "weights"):
        assert torch.cat([getattr(p, name) for p in cut.parts[:3]]).equal(getattr(part, name))
    if packing is not None:
        packings = [piece.packing for piece in cut.parts[:3]]
        assert torch.cat([p.document for p in packings if p]).equal(packing.document)
        assert torch.cat([p.position for p in packings if p]).equal(packing.position)
    assert whole.cut(5) == whole
