"""Which kernel is taken, that a bad one is found out, and that compilers see through it all."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from model.kernels.cases import assert_close_to, cut, noise_from, pack, with_gradients
from torch import Tensor

from chatbench.errors import UsageError
from chatbench.model.attention import (
    AttentionSpec,
    LayerCache,
    Packing,
    attention,
    describe_choices,
    reference_attention,
)
from chatbench.model.kernels import availability, choice
from chatbench.model.kernels.choice import BACKENDS, FORCE, Backend
from chatbench.model.kernels.kinds import Kind
from chatbench.model.kernels.reference import reference_kernel
from chatbench.model.kernels.selftest import fault_of
from chatbench.model.kernels.task import Task

CPU = torch.device("cpu")
PHASES = ("training", "prefill", "prefill on a cache", "decode, one row", "decode, even rows",
          "decode, ragged rows")  # fmt: skip


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_broken", {})
    monkeypatch.delenv(FORCE, raising=False)


def chosen() -> list[str]:
    return [line.backend for line in choice._chosen.values()]


def taken(rows: int, tokens: int, held: list[int] | None = None, **options: Any) -> str:
    """The kernel that serves such a call, made for real."""
    group, dtype = options.pop("group", 2), options.pop("dtype", torch.float32)
    learning = options.pop("learning", True)
    q, k, v = (torch.randn(rows, tokens, n, 8).to(dtype) for n in (2 * group, 2, 2))
    q.requires_grad_(learning)
    if held is not None:
        store = torch.zeros(2, rows, max(held) + tokens, 2, 8)
        options["cache"] = LayerCache(*store, torch.tensor(held), max(held))
    attention(q, k, v, **options)
    return chosen()[0] if len(chosen()) == 1 else " ".join(chosen())


def test_a_cpu_takes_for_each_phase_what_was_measured_to_be_fast() -> None:
    def fresh(*args: Any, **options: Any) -> str:
        choice._chosen.clear()
        return taken(*args, **options)

    halves, short = pack([[170, 180], [200, 150]]), pack([[70, 80], [100, 50]])
    window = AttentionSpec(30)
    assert fresh(2, 60) == "sdpa"
    assert fresh(2, 130) == "products"
    assert fresh(2, 130, group=1) == "sdpa"
    assert fresh(2, 256, group=1) == "sdpa"
    assert fresh(1, 512, group=1) == "products"
    assert fresh(2, 256, learning=False) == "sdpa"
    assert fresh(1, 1100) == "sdpa"
    assert fresh(2, 256, dtype=torch.float64) == "products"
    assert fresh(2, 256, learning=False, spec=window) == "products"
    assert fresh(2, 350, packing=halves) == "documents products"
    assert fresh(2, 150, packing=short) == "sdpa"
    assert fresh(1, 1, [40]) == fresh(1, 20, [400]) == fresh(3, 1, [400, 400, 400]) == "sdpa"
    assert fresh(1, 1, [900]) == "products"
    assert fresh(1, 1, [900], group=1) == "sdpa"
    assert fresh(3, 1, [4, 40, 0]) == "sdpa"
    assert fresh(3, 1, [4, 900, 0], group=1).startswith("rows sdpa")


def test_probabilities_that_would_fill_the_memory_are_not_kept() -> None:
    q, k, v = (torch.randn(300, 1000, heads, 8, device="meta") for heads in (8, 2, 2))
    q.requires_grad_()
    kind = choice.kind_of(Task(q, k, v, None, 1.0))
    assert (kind.phase, kind.size) == ("training", "large")


@pytest.mark.parametrize("hardware", [False, True])
def test_products_of_bfloat16_wait_for_hardware(
    monkeypatch: pytest.MonkeyPatch, hardware: bool
) -> None:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: hardware, raising=False)
    assert taken(2, 256, dtype=torch.bfloat16) == ("products" if hardware else "sdpa")


def test_a_choice_is_made_once_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="chatbench"):
        taken(2, 60)
        taken(3, 61)
    assert len(caplog.records) == 1
    assert "training" in caplog.text
    assert "sdpa" in caplog.text


def test_a_kernel_can_be_asked_for_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORCE, "reference")
    assert taken(2, 256) == "reference"
    monkeypatch.setenv(FORCE, "magic")
    with pytest.raises(UsageError, match=r"magic names no kernel.*"):
        taken(2, 256)


def test_one_asked_for_where_it_cannot_serve_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FORCE, "triton")
    assert taken(2, 60) == "sdpa"


def test_the_reference_is_not_for_a_device_without_float64() -> None:
    apple = Kind("mps", None, "training", "small", torch.float32, 16, 2, False, "none", False)
    assert choice._decide(apple, "reference").backend == "sdpa"
    assert choice._decide(apple._replace(device="cpu"), "reference").backend == "reference"


def off_by_one(task: Task) -> Tensor:
    window = task.window and task.window + 1
    return reference_kernel(task._replace(window=window))


def blind_to_documents(task: Task) -> Tensor:
    return reference_kernel(task._replace(packing=None))


def without_gradient_of_values(task: Task) -> Tensor:
    return reference_kernel(task._replace(v=task.v.detach())) + 0 * task.v.sum()


def sees_one_too_few(task: Task) -> Tensor:
    assert task.reach is not None
    reach = type(task.reach)(task.reach.lengths - 1, task.reach.longest)
    return reference_kernel(task._replace(reach=reach))


def raises(task: Task) -> Tensor:
    raise RuntimeError("no such\nlibrary")


def no_number(task: Task) -> Tensor:
    return reference_kernel(task) * float("nan")


def kind(phase: Any = "training", packed: bool = False, window: str = "none") -> Kind:
    return Kind("cpu", None, phase, "medium", torch.float32, 16, 2, packed, window, False)


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        (off_by_one, kind(window="wide")),
        (off_by_one, kind("decode, ragged rows", window="narrow")),
        (blind_to_documents, kind(packed=True)),
        (without_gradient_of_values, kind()),
        (sees_one_too_few, kind("decode, ragged rows")),
        (raises, kind()),
        (no_number, kind("prefill")),
    ],
)
def test_a_wrong_kernel_is_found_out(kernel: Callable[[Task], Tensor], wanted: Kind) -> None:
    assert fault_of(kernel, wanted)
    assert not fault_of(reference_kernel, wanted)


@pytest.mark.parametrize("kernel", [off_by_one, raises, no_number, without_gradient_of_values])
def test_a_wrong_kernel_is_said_once_and_replaced(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kernel: Callable[[Task], Tensor],
) -> None:  # fmt: skip
    monkeypatch.setitem(BACKENDS, "hasty", Backend(kernel, lambda kind: "", trusted=False))
    monkeypatch.setenv(FORCE, "hasty")
    noise, spec = noise_from(rng), AttentionSpec(100)
    for width in (8, 16, 16):
        leaves = [noise(2, 130, n, width) for n in (4, 2, 2)]
        upstream = noise(2, 130, 4, width)
        found, exact = (
            with_gradients(lambda *x, f=f: f(*x, spec), leaves, upstream)
            for f in (attention, reference_attention)
        )
        for ours, wanted in zip(found, exact, strict=True):
            assert_close_to(ours, wanted)
    said = capsys.readouterr().err
    assert said.count("attention kernel hasty failed its test and is not used") == 1
    assert chosen() == ["products", "products"]


@pytest.mark.parametrize("window", ["none", "wide", "narrow"])
@pytest.mark.parametrize(
    ("phase", "packed"), [*((p, False) for p in PHASES), *((p, True) for p in PHASES[:2])]
)
def test_a_right_kernel_passes_its_test(phase: Any, window: str, packed: bool) -> None:
    wanted = kind(phase, packed, window)
    tried = [name for name, backend in BACKENDS.items() if not backend.unfit(wanted)]
    assert {"sdpa", "reference"} <= {*tried}
    for name in tried:
        assert fault_of(BACKENDS[name].run, wanted) == "", name


def test_an_untried_kernel_that_is_right_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKENDS, "new", Backend(reference_kernel, lambda kind: "", trusted=False))
    monkeypatch.setenv(FORCE, "new")
    with torch.inference_mode():
        assert taken(2, 60, learning=False) == "new"
    assert capsys.readouterr().err == ""


def test_every_phase_is_described_and_what_is_not_used_says_why() -> None:
    lines = describe_choices(CPU)
    assert {line.phase for line in lines} == {
        *PHASES, "linear, few rows", "whole step", "not used", "library",
    }  # fmt: skip
    assert all(line.reason for line in lines)
    names = {line.backend: line.reason for line in lines if line.phase == "not used"}
    assert {*names.values()} >= {"needs a CUDA GPU"}
    used = {line.backend for line in lines if line.phase in PHASES}
    assert {"sdpa", "products", "documents", "rows"} <= used
    assert len(names) + len(used) == len(BACKENDS)


def test_what_sdpa_takes_is_asked_of_pytorch() -> None:
    assert availability.sdpa_takes(CPU) in ("FLASH_ATTENTION", "MATH")
    assert availability.libraries(CPU) == [("PyTorch", torch.__version__)]


def test_a_kernel_that_failed_is_described_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Backend(raises, lambda kind: "", trusted=False)
    monkeypatch.setitem(BACKENDS, "varlen", broken)
    monkeypatch.setenv(FORCE, "varlen")
    lines = describe_choices(CPU)
    (line,) = (line for line in lines if "varlen" in line.backend)
    assert line.phase == "not used"
    assert "no such library" in line.reason


def test_without_a_gpu_gpu_kernels_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    half = kind()._replace(device="cuda", dtype=torch.bfloat16, packed=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    assert "flash_attn_interface is not installed" in availability.flash3(half)
    assert "triton is not installed" in availability.triton(half._replace(phase=PHASES[5]))
    monkeypatch.setattr(availability, "find_spec", lambda name: name)
    assert availability.flash3(half) == ""
    assert availability.triton(half._replace(phase=PHASES[5])) == ""
    assert "no cache" in availability.varlen(half._replace(phase=PHASES[2]))
    assert "bfloat16" in availability.varlen(half._replace(dtype=torch.float32))
    assert "multiples of 8" in availability.flash3(half._replace(width=20))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    assert "Ampere" in availability.varlen(half)


def test_a_gpu_prefers_the_kernels_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order alone; that they compute right is tried out on the GPU itself."""
    for name in ("varlen", "flash3", "triton"):
        free = BACKENDS[name]._replace(unfit=lambda kind: "", trusted=True)
        monkeypatch.setitem(BACKENDS, name, free)
    far = kind()._replace(device="cuda", dtype=torch.bfloat16)
    assert choice._choose(*far) == "sdpa"
    assert choice._choose(*far._replace(packed=True)) == "flash3"
    assert choice._choose(*far._replace(phase="prefill", window="wide")) == "flash3"
    assert choice._choose(*far._replace(phase="decode, ragged rows", size="large")) == "triton"
    assert choice._choose(*far._replace(phase="decode, one row", size="large")) == "sdpa"
    absent = BACKENDS["flash3"]._replace(unfit=lambda kind: "absent")
    monkeypatch.setitem(BACKENDS, "flash3", absent)
    choice._chosen.clear()
    assert choice._choose(*far._replace(packed=True)) == "varlen"


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 40])
def test_a_compiler_sees_one_graph_and_compiles_it_once(
    rng: random.Random, packed: bool, window: int | None
) -> None:
    noise, tokens = noise_from(rng), 200
    rows = [cut(rng, tokens), cut(rng, tokens)]
    spec = AttentionSpec(window)

    def call(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        # Two layers share what the packing derives.
        return attention(attention(q, k, v, spec, packing), k, v, spec, packing)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            leaves = [noise(2, tokens, heads, 16) for heads in (4, 2, 2)]
            upstream = noise(2, tokens, 4, 16)
            found, wanted = (
                with_gradients(
                    lambda *x, f=f: f(*x, pack(rows) if packed else None), leaves, upstream
                )
                for f in (compiled, call)
            )
            for ours, eager in zip(found, wanted, strict=True):
                assert_close_to(ours, eager)


def test_boundaries_travel_with_a_packing_and_have_few_shapes(rng: random.Random) -> None:
    rows = [cut(rng, 90), cut(rng, 90), [90]]
    far = pack(rows).to(torch.device("meta"))
    here = pack(rows)
    starts = here.starts()
    count = sum(map(len, rows))
    wanted, at = [], 0
    for length in [length for row in rows for length in row]:
        wanted.append(at)
        at += length
    assert starts[:count].tolist() == wanted
    assert set(starts[count:].tolist()) == {270}
    assert len(starts) % 64 == 1
    assert far.starts().shape == starts.shape
    assert far.starts().device.type == far.position.device.type == "meta"
    assert here.to(CPU) is here
    assert here.lengths() == rows
    doubled = here.map(lambda tensor: tensor * 2)
    assert torch.equal(doubled.starts(), starts * 2)
    assert torch.equal(doubled.document, here.document * 2)
