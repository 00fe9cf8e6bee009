"""What the GPU path gives on this machine, in one run: numerics, attention kernels, the parts of a
training step, speed of training and of decoding.

MFU counts 6·N + 12·L·d·T FLOPs a token (N: parameters, the tied head once) against the 989 TFLOP/s
of dense bfloat16 on an H100 or H200. `--smoke` walks every path at toy sizes, on any machine.

python tests/bench/gpu.py [--smoke] [--only numerics,kernels,parts,training,decoding]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.engine.engine import Engine, Request
from chatbench.engine.graphs import Graphs, Step, again, captured
from chatbench.model.attention import AttentionSpec, Packing, Reach, attention
from chatbench.model.head import linear_cross_entropy
from chatbench.model.kernels import choice
from chatbench.model.kernels.kinds import kind_of
from chatbench.model.kernels.reference import reference_kernel
from chatbench.model.kernels.task import Task
from chatbench.model.quantize import weight_bytes
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings, SamplingSettings, TrainSettings
from chatbench.text.tokenizer import Tokenizer, train_tokenizer
from chatbench.train.compiling import as_trained
from chatbench.train.likelihood import Likelihood
from chatbench.train.objective import Batch
from chatbench.train.optimizer import Optimizers
from chatbench.train.plan import make_plan

PEAK = 989e12
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32


class Sizes(NamedTuple):
    """Everything that `--smoke` makes small."""

    attention: list[tuple[int, int, int, int, int]]  # rows, tokens, heads, kv heads, width
    shapes: dict[str, ModelConfig]
    micro_batches: list[int]
    decoding: dict[str, ModelConfig]
    decoding_rows: list[int]
    reach: int
    rounds: int


def gpt2(layers: int, width: int, heads: int, ffn: int) -> ModelConfig:
    return ModelConfig(50_304, layers, width, heads, heads, width // heads, ffn, 1024)


FULL = Sizes(
    [(16, 1024, 12, 12, 64), (8, 2048, 12, 4, 128), (4, 4096, 16, 16, 128)],
    {
        "124M": gpt2(12, 768, 12, 2048),
        "350M": gpt2(24, 1024, 16, 2752),
        "1.5B": gpt2(48, 1600, 25, 4288),
    },
    [64, 32, 16, 8, 4],
    {"124M": gpt2(12, 768, 12, 2048), "1.5B": gpt2(48, 1600, 25, 4288)},
    [1, 16, 64],
    512,
    20,
)
_TOY = ModelConfig(256, 2, 32, 4, 2, 8, 64, 64)
SMOKE = Sizes([(2, 40, 4, 2, 16)], {"toy": _TOY}, [4], {"toy": _TOY}, [1, 3], 20, 2)


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """On the GPU between two events, so that the host's lead does not count."""
    for _ in range(3 if GPU else 1):
        call()
    times = []
    for _ in range(rounds):
        if GPU:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


# -- numerics --------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, Task]]:
    """One call of each kind that kernels differ in; values are what a model's would be."""
    rows, tokens, heads, kv_heads, width, held = 3, 96, 8, 2, 64, 300

    def drawn(*shape: int, learns: bool = False) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(DTYPE).requires_grad_(learns)

    def fresh(new: int) -> tuple[Tensor, Tensor, Tensor]:
        return (drawn(rows, new, heads, width, learns=True),
                *(drawn(rows, new, kv_heads, width, learns=True) for _ in range(2)))  # fmt: skip

    scale = width**-0.5
    document = torch.arange(tokens).expand(rows, tokens).div(29, rounding_mode="floor")
    packing = Packing(document, torch.arange(tokens).expand(rows, tokens) % 29).to(DEVICE)
    yield "causal", Task(*fresh(tokens), None, scale)
    yield "window", Task(*fresh(tokens), 17, scale)
    yield "documents", Task(*fresh(tokens), None, scale, packing)
    yield "documents, window", Task(*fresh(tokens), 17, scale, packing)
    whole = (drawn(rows, held + 40, kv_heads, width), drawn(rows, held + 40, kv_heads, width))
    for name, lengths, new in (
        ("decode, ragged", [5, 0, held], 1),
        ("decode, even", [held] * rows, 1),
        ("verify 8, ragged", [5, 0, held], 8),
        ("prefill on a cache", [5, 0, held], 33),
    ):
        reach = Reach(torch.tensor(lengths, device=DEVICE), held, lengths)
        keys, values = (x[:, : held + new] for x in whole)
        q = drawn(rows, new, heads, width)
        yield name, Task(q, keys, values, None, scale, None, reach, whole)


def numerics(sizes: Sizes) -> None:
    """Every kernel against the definition in float64, beside the error of rounding the output."""
    for line in choice.describe_choices(DEVICE):
        print("  chosen:", " · ".join(part for part in line if part))
    for name, task in cases():
        exact = reference_kernel(task._replace(q=task.q.double())).detach().double()
        rounding = relative(exact.to(DTYPE), exact)
        for backend, entry in choice.BACKENDS.items():
            if entry.unfit(kind_of(task)):
                continue
            try:
                error = relative(entry.run(task), exact)
                said = f"{error:.1e} ({error / max(rounding, 1e-7):.1f}× rounding)"
            except Exception as fault:  # a broken kernel is a finding
                said = f"FAILED: {type(fault).__name__}: {str(fault)[:90]}"
            print(f"  {name:<20} {backend:<10} {said}")


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


# -- kernels ---------------------------------------------------------------------------------------


def kernels(sizes: Sizes) -> None:
    """Causal attention, forward and backward, by every kernel that takes it."""
    for rows, tokens, heads, kv_heads, width in sizes.attention:
        q = torch.randn(rows, tokens, heads, width, device=DEVICE).to(DTYPE).requires_grad_()
        k, v = (
            torch.randn(rows, tokens, kv_heads, width, device=DEVICE).to(DTYPE).requires_grad_()
            for _ in range(2)
        )
        document = torch.zeros(rows, tokens, dtype=torch.long)
        packing = Packing(document, torch.arange(tokens).expand(rows, tokens)).to(DEVICE)
        upstream = torch.randn_like(q)
        flops = 2 * rows * heads * tokens * tokens * width  # two products, half of the square
        print(f"  B {rows} T {tokens} H {heads} K {kv_heads} D {width}")
        for title, how in (("causal", None), ("one document", packing)):
            task = Task(q, k, v, None, width**-0.5, how)
            for backend, entry in choice.BACKENDS.items():
                if backend == "reference" or entry.unfit(kind_of(task)):
                    continue
                time_kernel(f"{title:<13} {backend:<10}", entry.run, task, upstream, flops, sizes)


def time_kernel(
    title: str, run: Callable[[Task], Tensor], task: Task, upstream: Tensor, flops: float,
    sizes: Sizes,
) -> None:  # fmt: skip
    inputs = (task.q, task.k, task.v)
    try:
        ahead = median_seconds(lambda: run(task), sizes.rounds)
        both = median_seconds(
            lambda: torch.autograd.grad(run(task), inputs, upstream), sizes.rounds
        )
    except Exception as fault:
        print(f"    {title} FAILED: {type(fault).__name__}: {str(fault)[:90]}")
        return
    back = max(both - ahead, 1e-9)
    print(
        f"    {title} forward {1e3 * ahead:.2f} ms {flops / ahead / 1e12:.0f} TFLOP/s · "
        f"backward {1e3 * back:.2f} ms {2.5 * flops / back / 1e12:.0f} TFLOP/s"
    )


# -- training --------------------------------------------------------------------------------------


class Training:
    """A model, its optimisers and a batch of random tokens, as `pretrain` puts them together."""

    def __init__(self, config: ModelConfig, rows: int, compile: str) -> None:
        self.model = GPT(config).to(DEVICE).train()
        initialise(self.model, 0)
        settings = TrainSettings(compile=compile, micro_batch=rows, steps=1,
                                 batch_tokens=rows * config.context)  # fmt: skip
        optim = OptimSettings()
        plan = make_plan(
            settings, optim, seq_len=config.context, batch_tokens=rows * config.context,
            rows_per_epoch=10**6,
        )  # fmt: skip
        self.optimizers = Optimizers(self.model, optim, plan.learning_rate, DTYPE)
        self.forward, _ = as_trained(self.model, settings, plan, DTYPE, DEVICE)
        speech: Any = SimpleNamespace(token_bytes=[b"x"] * config.vocab_size)
        self.objective = Likelihood(None, [], speech)  # type: ignore[arg-type]
        ids = torch.randint(0, config.vocab_size, (rows, config.context + 1))
        batch = Batch(
            ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, config.context),
            None,
        ).counted()  # fmt: skip
        self.batch = batch.pinned() if GPU else batch
        self.tokens = rows * config.context

    def step(self) -> None:
        loss = self.objective.loss(self.forward, self.batch.to(DEVICE))
        (loss.total / self.tokens).backward()  # type: ignore[no-untyped-call]
        self.optimizers.collect_gradients()
        norm = self.optimizers.clip(1.0)
        self.optimizers.step(1.0, skip=~norm.isfinite())


def largest_that_fits(config: ModelConfig, sizes: Sizes, compile: str) -> tuple[Training, float]:
    """The training with most rows at once, and its seconds a step."""
    for rows in sizes.micro_batches:
        try:
            training = Training(config, rows, compile)
            return training, median_seconds(training.step, sizes.rounds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise SystemExit("not even the smallest micro-batch fits")


def training(sizes: Sizes) -> None:
    for name, config in sizes.shapes.items():
        for compile in ("auto", "off"):
            if GPU:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            made, seconds = largest_that_fits(config, sizes, compile)
            rate = made.tokens / seconds
            flops = 6 * made.model.parameter_count()
            flops += 12 * config.n_layers * config.n_heads * config.head_dim * config.context
            held = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0
            print(
                f"  {name} compile {compile}: {rate:,.0f} tokens/s · MFU {rate * flops / PEAK:.1%} "
                f"· {made.tokens:,} tokens at once · {held:.1f} GiB"
            )
            del made


def parts(sizes: Sizes) -> None:
    """Parts of a step by themselves; what is missing of the sum is what compiling has to fuse."""
    name, config = next(iter(sizes.shapes.items()))
    made, whole = largest_that_fits(config, sizes, "auto")
    count, width = made.tokens, config.hidden_size
    rows = count // config.context
    model = made.model

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(DTYPE).requires_grad_()

    x = drawn(count, width)
    heads = (rows, config.context)
    q = drawn(*heads, config.n_heads, config.head_dim)
    k, v = (drawn(*heads, config.n_kv_heads, config.head_dim) for _ in range(2))
    up = torch.randn_like(q)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers.0." in n]
    fed = {m.shape[1]: drawn(count, m.shape[1]) for m in matrices}
    targets = torch.randint(0, config.vocab_size, (count,), device=DEVICE)

    def products() -> None:
        for matrix in matrices:
            F.linear(fed[matrix.shape[1]], matrix).sum().backward()

    def attend() -> None:
        torch.autograd.grad(attention(q, k, v, AttentionSpec()), (q, k, v), up)

    def head() -> None:
        weight = model.lm_head.weight
        total = linear_cross_entropy(x, weight, targets).total
        torch.autograd.grad(total, (x, weight))

    def optimise() -> None:
        for master in made.optimizers.masters.values():
            master.grad = torch.ones_like(master)
        made.optimizers.clip(1.0)
        made.optimizers.step(1.0)

    spent = {
        "attention": config.n_layers * median_seconds(attend, sizes.rounds),
        "matrix products": config.n_layers * median_seconds(products, sizes.rounds),
        "head and loss": median_seconds(head, sizes.rounds),
        "optimiser": median_seconds(optimise, sizes.rounds),
    }
    print(f"  {name}, {count:,} tokens: {1e3 * whole:.1f} ms a step")
    for part, seconds in spent.items():
        print(f"    {part:<16} {1e3 * seconds:.1f} ms {seconds / whole:.0%}")


# -- decoding --------------------------------------------------------------------------------------


@torch.inference_mode()
def decoding(sizes: Sizes) -> None:
    """One token for each row after a ragged cache, then whole replies with the host a step behind:
    both with the engine's graphs and without."""
    tokenizer = train_tokenizer(["tea 茶"], 300)
    tokenizer.stops = frozenset()
    for name, config in sizes.decoding.items():
        model = GPT(config).to(DEVICE, DTYPE).eval()
        for rows in sizes.decoding_rows:
            one_step(f"  {name} batch {rows}", model, rows, sizes)
            replies(f"  {name} batch {rows}", model, tokenizer, rows, sizes)


def one_step(title: str, model: GPT, rows: int, sizes: Sizes) -> None:
    """Every other row holds three quarters of what its neighbours hold."""
    config, reach = model.config, sizes.reach
    cache = KVCache(config, rows, DEVICE, DTYPE)
    cache.reserve(reach + 1)
    cache.lengths = [reach if row % 2 == 0 else 3 * reach // 4 for row in range(rows)]
    for stored in cache.stores(rows):
        for tensor in stored:
            tensor.normal_()
    for how, limits in (("greedy", None), ("drawn", (0.7, 50.0, 0.95, 0.0))):
        step = Step(model, cache, rows, config.vocab_size, greedy=limits is None)
        if limits is not None:
            step.limits.copy_(torch.tensor(limits)[:, None, None])
            step.uniforms.uniform_()
        eager = median_seconds(step.compute, sizes.rounds)
        replay = (captured if GPU else again)(step.compute, DEVICE, None)
        replayed = median_seconds(replay, sizes.rounds)
        read = weight_bytes(model) / replayed / 1e12
        print(
            f"{title} {how}: eager {rows / eager:,.0f} tokens/s · "
            f"graph {rows / replayed:,.0f} tokens/s · weights {read:.2f} TB/s"
        )


def replies(title: str, model: GPT, tokenizer: Tokenizer, rows: int, sizes: Sizes) -> None:
    """Prompts of a quarter of the reach and drawn tokens up to it, the prompts' time included."""
    new = 3 * sizes.reach // 4
    settings = SamplingSettings(max_tokens=new, seed=0)
    asked = [Request([7 + row] * (sizes.reach // 4), settings) for row in range(rows)]
    spent = []
    for ahead in (False, True):
        engine = Engine(model, tokenizer, rows)
        capture = captured if GPU else again
        engine.graphs = (
            Graphs(model, engine._cache, tokenizer.vocab_size, capture) if ahead else None
        )
        spent.append(median_seconds(lambda engine=engine: engine.complete(asked), 3))
    eager, ahead = (rows * new / seconds for seconds in spent)
    print(f"{title} replies: eager {eager:,.0f} tokens/s · a step ahead {ahead:,.0f} tokens/s")


PARTS = {"numerics": numerics, "kernels": kernels, "parts": parts, "training": training,
         "decoding": decoding}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    chosen = parser.parse_args()
    torch.manual_seed(0)
    if not GPU and not chosen.smoke:
        raise SystemExit("no GPU here; --smoke walks every path at toy sizes")
    print(torch.cuda.get_device_name() if GPU else "CPU", f"· torch {torch.__version__}")
    for name in chosen.only.split(","):
        print(f"{name}:", flush=True)
        PARTS[name](SMOKE if chosen.smoke else FULL)


if __name__ == "__main__":
    main()
