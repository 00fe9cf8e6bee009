"""What speed asks of training changes nothing that is computed: compiled or not, blocks run once or
twice, batches made ahead or in turn, numbers read at once or late."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chatbench.errors import DivergedError, EnvironmentFault
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig, RopeScaling
from chatbench.settings import PretrainSettings
from chatbench.train import compiling, loop
from chatbench.train.batches import Row, collate
from chatbench.train.checkpoint import checkpoints_of
from chatbench.train.compiling import (
    activation_bytes,
    compiled,
    compiling_pays_from,
    run_twice,
    to_shape,
    wants_checkpointing,
    wants_compiling,
)
from chatbench.train.feed import Feed
from chatbench.train.likelihood import Likelihood
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.readings import Reading, Readings
from chatbench.train.recipes import pretrain

CPU = torch.device("cpu")
Make = Callable[..., PretrainSettings]


POSITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"positions": "learned"},
    "dynamic": {"rope": RopeScaling("dynamic", 2.0)},
}


@pytest.fixture
def model(rng: random.Random, request: pytest.FixtureRequest) -> GPT:
    """Two layers of random weights, zeros nowhere."""
    positions = POSITIONS[getattr(request, "param", "plain")]
    made = GPT(ModelConfig(53, 2, 16, 2, 1, 8, 24, 32, **positions)).train()
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    for weight in made.parameters():
        torch.nn.init.normal_(weight, 0.1, 0.3, generator=generator)
    return made


@pytest.fixture
def likelihood(tokenizer: Any) -> Likelihood:
    return Likelihood(None, [], tokenizer)  # type: ignore[arg-type]


def drawn(rng: random.Random, rows: int, used: int, *, packed: bool, seq_len: int = 24) -> Batch:
    """A micro-batch whose last used column is `used`, as the loader cuts it."""
    made = []
    for _ in range(rows):
        document = np.zeros(seq_len, np.int64)
        position = np.arange(seq_len)
        if packed:
            cut = rng.randrange(1, used)
            document[:used] = np.where(np.arange(used) < cut, 1, 2)
            position = np.where(document == 2, position - cut, position) * (document > 0)
        weights = np.zeros(seq_len, np.float32)
        weights[:used] = [rng.choice((0.0, 1.0)) for _ in range(used - 1)] + [1.0]
        ids, targets = (
            np.array([rng.randrange(53) for _ in range(seq_len)], np.int64) for _ in range(2)
        )
        made.append(Row(ids, targets, weights, document, position))
    return collate(made, packed)


def learn(model: GPT, forward: GPT, likelihood: Likelihood, batch: Batch) -> tuple[Tensor, ...]:
    """Loss and gradients."""
    model.zero_grad()
    total = likelihood.loss(forward, batch).total
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)


def close(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


# -- compiling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["stream", "packed"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("model", ["plain", "learned", "dynamic"], indirect=True)
def test_batches_of_any_size_run_one_compiled_graph_and_give_the_plain_loss(
    rng: random.Random, model: GPT, likelihood: Likelihood, packed: bool, twice: bool
) -> None:
    if twice:
        model.block_runner = run_twice
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    forward = compiled(model, backend=counter)  # type: ignore[arg-type]
    for rows, used in ((3, 24), (3, 17), (2, 9), (1, 24)):
        batch = drawn(rng, rows, used, packed=packed)
        close(
            learn(model, forward, likelihood, to_shape(batch, 3, 24)),
            learn(model, model, likelihood, batch),
        )
        assert counter.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_added_places_count_for_nothing_and_nobody_sees_them(rng: random.Random) -> None:
    batch = drawn(rng, 2, 13, packed=True)
    padded = to_shape(batch, 5, 24).counted()
    assert padded.ids.shape == padded.targets.shape == padded.weights.shape == (5, 24)
    assert padded.weight == float(batch.weights.sum())
    assert torch.equal(padded.weights[:2, : batch.ids.shape[1]], batch.weights)
    assert padded.packing is not None
    assert batch.packing is not None
    before = batch.packing.mask(None)
    columns = batch.ids.shape[1]
    seen = padded.packing.mask(None)
    assert torch.equal(seen[:2, :, :columns, :columns], before)
    assert not seen[:2, :, columns:, :columns].any(), "added columns see no document"


def test_boundaries_of_documents_are_padded_to_few_lengths(rng: random.Random) -> None:
    lengths = set()
    for rows, used in ((3, 24), (2, 9), (1, 4)):
        batch = drawn(rng, rows, used, packed=True)
        packing = to_shape(batch, 3, 24).packing
        assert packing is not None
        starts = packing.starts()
        plain = Packing(packing.document, packing.position).starts()
        assert torch.equal(starts[: len(plain)], plain)
        assert (starts[len(plain) :] == 3 * 24).all()
        lengths.add(len(starts))
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("setting", "device", "wanted"),
    [("auto", "cpu", False), ("off", "cuda", False), ("off", "cpu", False), ("on", "cpu", True),
     ("auto", "cuda", True), ("on", "cuda", True)],
)  # fmt: skip
def test_auto_compiles_on_cuda_alone(
    monkeypatch: pytest.MonkeyPatch, setting: str, device: str, wanted: bool
) -> None:
    monkeypatch.setattr(compiling, "_missing", lambda device: None)
    assert wants_compiling(setting, torch.device(device)) is wanted
    # Only a run that lasts wins back the time that compiling takes.
    pays = compiling_pays_from()
    assert wants_compiling(setting, torch.device(device), 1.01 * pays) is wanted
    assert wants_compiling(setting, torch.device(device), 0.99 * pays) is (setting == "on")


def test_without_a_compiler_on_is_an_error_and_auto_a_notice(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"C\+\+ compiler") as caught:
        wants_compiling("on", CPU)
    assert caught.value.exit_code == 5
    with pytest.raises(EnvironmentFault):
        pretrain(tiny_settings(corpus_folder, tmp_path / "run", compile="on"))
    assert not (tmp_path / "run").exists(), "said before any work"
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
    assert wants_compiling("auto", torch.device("cuda")) is False
    assert "not compiled" in capsys.readouterr().err


def test_a_run_is_the_same_with_a_compiled_step(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, base_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Through the whole of pretrain, by a backend that needs no C++ compiler."""
    made = []

    def quick(model: GPT) -> GPT:
        made.append(compiled(model, backend="eager"))
        return made[-1]

    monkeypatch.setattr(compiling, "compiled", quick)
    monkeypatch.setattr(compiling, "_missing", lambda device: None)
    torch._dynamo.reset()
    run = pretrain(tiny_settings(corpus_folder, tmp_path / "run", compile="on"))
    assert made
    for ours, theirs in zip(metrics_of(run), metrics_of(base_run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# -- blocks run twice ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["stream", "packed"])
def test_blocks_run_twice_give_the_same_gradients_from_less_memory(
    rng: random.Random, model: GPT, likelihood: Likelihood, packed: bool
) -> None:
    batch = drawn(rng, 3, 24, packed=packed)
    kept = [0, 0]

    def count(which: int) -> Callable[[Tensor], Tensor]:
        def pack(tensor: Tensor) -> Tensor:
            kept[which] += tensor.numel()
            return tensor

        return pack

    with torch.autograd.graph.saved_tensors_hooks(count(0), lambda x: x):
        plain = learn(model, model, likelihood, batch)
    model.block_runner = run_twice
    with torch.autograd.graph.saved_tensors_hooks(count(1), lambda x: x):
        twice = learn(model, model, likelihood, batch)
    assert all(torch.equal(a, b) for a, b in zip(plain, twice, strict=True))
    assert kept[1] < kept[0] / 2


def test_without_gradients_blocks_run_once(rng: random.Random, model: GPT) -> None:
    ids = drawn(rng, 2, 12, packed=False).ids
    with torch.no_grad():
        wanted = model(ids)
        model.block_runner = run_twice
        assert torch.equal(model(ids), wanted)


def test_memory_is_saved_when_asked_and_on_a_gpu_that_is_short_of_it(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(32_768, 24, 2048, 16, 8, 128, 5632, 2048)

    def wanted(setting: str, device: str, tokens: int) -> bool:
        return wants_checkpointing(
            setting, config, 10**9, tokens, torch.bfloat16, torch.device(device)
        )

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
    assert wanted("on", "cpu", 1)
    assert not wanted("off", "cuda", 10**9)
    assert not wanted("auto", "cpu", 10**9)
    assert not wanted("auto", "cuda", 4096)
    assert wanted("auto", "cuda", 65_536)
    assert activation_bytes(config, 2, torch.bfloat16) * 2 == activation_bytes(
        config, 2, torch.float32
    )


def test_the_estimate_is_near_what_blocks_keep(rng: random.Random) -> None:
    config = ModelConfig(53, 3, 32, 4, 2, 16, 64, 64)
    model = GPT(config).train()
    batch = drawn(rng, 4, 64, packed=False, seq_len=64)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = model(batch.ids)
    measured = sum(size for place, size in kept.items() if place not in weights)
    assert hidden.requires_grad
    assert 0.6 < activation_bytes(config, 4 * 64, torch.float32) / measured < 1.4


# -- batches ahead ---------------------------------------------------------------------------------


def test_batches_made_ahead_are_the_same_in_the_same_order(rng: random.Random) -> None:
    batches = [GlobalBatch([drawn(rng, 2, 9, packed=True)], 1.0, 48) for _ in range(6)]
    threads = set()

    def make(step: int) -> GlobalBatch:
        threads.add(threading.current_thread())
        return batches[step]

    feed = Feed(make, CPU, lambda batch: to_shape(batch, 2, 24), ahead=True)
    for step in (0, 1, 2, 4):  # 3 is left out: what is asked for counts, not what was expected
        got = feed.batch(step).parts[0]
        assert got.ids.shape == (2, 24)
        assert torch.equal(got.ids[:, :9], batches[step].parts[0].ids)
    feed.close()
    assert threads == {t for t in threads if t is not threading.current_thread()}
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_goes_wrong_in_a_batch_is_told_at_its_step(rng: random.Random, ahead: bool) -> None:
    def make(step: int) -> GlobalBatch:
        if step == 1:
            raise OSError("读不了 cannot be read")
        return GlobalBatch([drawn(rng, 1, 9, packed=False)], 1.0, 24)

    feed = Feed(make, CPU, ahead=ahead)
    feed.batch(0)
    with pytest.raises(OSError, match="读不了"):
        feed.batch(1)
    feed.close()


# -- late readings ---------------------------------------------------------------------------------


def test_late_readings_keep_the_newest_back() -> None:
    late = Readings(CPU, late=True)
    told = []
    for step in range(4):
        total, norm = torch.tensor(step + 0.5, dtype=torch.float64), torch.tensor(1.0)
        late.put(step, 2.0, total, norm, torch.tensor(step == 3), 7.0, watched=True)
        told.append([reading.step for reading in late.take()])
    assert told == [[], [0], [1], [2]]
    assert late.take(everything=True) == [Reading(3, 2.0, 3.5, 1.0, True, 7.0, True)]
    assert late.take(everything=True) == []


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU as on a GPU: batches ahead, numbers late, bad updates skipped unseen."""
    monkeypatch.setattr(loop, "Readings", lambda device: Readings(device, late=True))
    monkeypatch.setattr(
        loop, "Feed", lambda make, device, prepare, ahead: Feed(make, device, prepare, ahead=True)
    )


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("train", [{}, {"log_every": 1, "save_every": 5, "eval_every": 3}])
def test_a_run_read_late_is_the_same_run(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, train: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def started(name: str) -> Path:
        settings = tiny_settings(corpus_folder, tmp_path / name, **train)
        settings.optim.optimizer = "adamw"  # Muon rounds a rate that lies on the device otherwise
        return pretrain(settings)

    run = started("late")
    monkeypatch.undo()
    other = started("plain")
    names = ("metrics.jsonl", "model/model.safetensors")
    ours, theirs = ([(folder / name).read_bytes() for name in names] for folder in (run, other))
    assert ours == theirs


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("step", [3, 7, 11])
def test_losses_that_are_no_numbers_are_found_a_step_later_and_spoil_nothing(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:  # fmt: skip
    plain = Likelihood.loss
    seen = [0]

    def poisoned(self: Likelihood, model: GPT, batch: Batch) -> Loss:
        loss = plain(self, model, batch)
        if torch.is_grad_enabled():
            seen[0] += 1
            if seen[0] > step:
                return loss._replace(total=loss.total * math.nan)
        return loss

    monkeypatch.setattr(Likelihood, "loss", poisoned)
    settings = tiny_settings(corpus_folder, tmp_path / "run", save_every=3, steps=20)
    most = settings.optim.most_skips
    with pytest.raises(DivergedError, match=f"step {step + most};") as caught:
        pretrain(settings)
    assert caught.value.exit_code == 7
    assert seen[0] <= step + most + 1
    # Checkpoints after the first bad step hold what was learnt before it.
    for folder in checkpoints_of(tmp_path / "run"):
        for tensor in load_file(folder / "model" / "model.safetensors").values():
            assert tensor.isfinite().all()
    assert not (tmp_path / "run" / "model").exists()


# -- the head --------------------------------------------------------------------------------------


class Doubled(torch.nn.Module):
    """A head of more than one matrix."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.first, self.second = head, torch.nn.Linear(head.in_features, head.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Questions(TorchDispatchMode):
    """Operations for whose answer the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("nonzero", "_local_scalar_dense"):
            self.asked.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("counting", ["all", "some"])
def test_a_step_asks_the_device_nothing(
    rng: random.Random, model: GPT, likelihood: Likelihood, counting: str
) -> None:
    batch = drawn(rng, 3, 20, packed=False)
    if counting == "all":
        batch = batch._replace(weights=torch.ones_like(batch.weights))
    batch = batch.counted()
    with Questions() as mode:
        likelihood.loss(model, batch).total.backward()  # type: ignore[no-untyped-call]
    assert mode.asked == []
    with Questions() as mode:
        batch._replace(places=None).counted()
    assert len(mode.asked) == 2  # so it would have been seen


@pytest.mark.parametrize("doubled", [False, True])
def test_the_loss_is_cross_entropy_over_what_counts(
    rng: random.Random, model: GPT, likelihood: Likelihood, doubled: bool
) -> None:
    if doubled:
        model.lm_head = Doubled(model.lm_head)  # type: ignore[assignment]
    model.double()
    batch = drawn(rng, 3, 20, packed=True)
    batch = batch._replace(weights=batch.weights * rng.uniform(0.5, 2.0))
    logits = model.logits(model(batch.ids, packing=batch.packing)).flatten(0, 1)
    each = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    wanted = (each * batch.weights.flatten()).sum()
    found = likelihood.loss(model, batch)
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    assert found.weight == pytest.approx(float(batch.weights.sum()))
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(found.total, parameters),
        torch.autograd.grad(wanted, parameters),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        metrics = likelihood.loss(model, batch).metrics
    sizes = likelihood._bytes[batch.targets.flatten()]
    counts = (batch.weights.flatten() > 0) & (sizes > 0)
    assert metrics["text_bytes"] == float(sizes[counts].sum())
    assert metrics["text_nats"] == pytest.approx(float(each[counts].sum().detach()), rel=1e-9)
