"""The device writes by itself and the host reads a step late: tokens are those of the eager engine.

Without a GPU the step is run again instead of replayed, on the same tensors.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.engine.graphs import MOST_KEPT, Ahead, Graphs, Step, again, draw, plain
from chatbench.engine.sampling import choose_rows
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]
LEARNED = {
    "positions": "learned", "norm": "layer", "gated": False, "activation": "gelu_tanh",
    "qk_norm": False, "qkv_bias": True, "out_bias": True, "ffn_bias": True, "n_kv_heads": 4,
}  # fmt: skip


def greedy(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 0, "max_tokens": 20, "speculate": "off", **changes})


def sampled(rng: random.Random, **changes: Any) -> SamplingSettings:
    """Settings that the device can follow, different from row to row."""
    return SamplingSettings(
        **{
            "temperature": rng.choice((0, rng.uniform(0.5, 2))), "top_k": rng.choice((1, 5, 50)),
            "top_p": rng.choice((1.0, rng.uniform(0.3, 1))), "seed": rng.randrange(1 << 40),
            "min_p": rng.choice((0.0, rng.uniform(0, 0.3))), "max_tokens": rng.randrange(1, 25),
            "speculate": "off", **changes,
        }
    )  # fmt: skip


def for_the_host(rng: random.Random) -> SamplingSettings:
    """Settings of which each needs the host."""
    needs: list[dict[str, Any]] = [
        {"top_k": 0, "temperature": 1.0}, {"logprobs": 2}, {"repetition_penalty": 1.4},
        {"logit_bias": {"5": 1.0}}, {"speculate": "on"}, {"frequency_penalty": 0.5},
    ]  # fmt: skip
    return sampled(rng, **rng.choice(needs))


def some(rng: random.Random, tokenizer: Tokenizer, tokens: int | None = None) -> list[int]:
    count = tokens or rng.randrange(1, 40)
    return [rng.randrange(tokenizer.vocab_size) for _ in range(count)]


def spaced_chain(make_chain: Make, rng: random.Random, tokenizer: Tokenizer) -> GPT:
    """No two scores are alike in float32: which of two equal ones is taken is nobody's promise."""
    size = tokenizer.vocab_size
    rows = [rng.sample(range(size), size) for _ in range(size)]
    return make_chain(torch.tensor(rows) / 64)


def running_ahead(model: GPT, tokenizer: Tokenizer, rows: int, **options: Any) -> Engine:
    engine = Engine(model, tokenizer, rows, **options)
    engine.graphs = Graphs(model, engine._cache, tokenizer.vocab_size, again)
    return engine


def key(done: Completion) -> tuple[list[int], str, str]:
    return done.ids, done.text, done.finish_reason


def alone(model: GPT, tokenizer: Tokenizer, request: Request) -> tuple[list[int], str, str]:
    (done,) = Engine(model, tokenizer, max_rows=1).complete([request])
    return key(done)


class Watched:
    """What happened: "launch" and "read", in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("launch", "read"):
            monkeypatch.setattr(Ahead, name, self._noting(name, getattr(Ahead, name)))

    def _noting(self, name: str, call: Callable[[Ahead], Any]) -> Callable[[Ahead], Any]:
        def noted(ahead: Ahead) -> Any:
            self.calls.append(name)
            return call(ahead)

        return noted


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


# ---- drawing


@pytest.mark.parametrize("size", [2, 50, 700])
def test_the_device_draws_what_the_host_draws(rng: random.Random, size: int) -> None:
    for _ in range(20):
        count = rng.randrange(1, 9)
        scores = torch.tensor([rng.sample(range(size), size) for _ in range(count)]) / 16
        settings = [
            sampled(
                rng, top_k=rng.choice((1, 3, 40, MOST_KEPT)), temperature=rng.choice((0, 0.3, 2.5))
            )
            for _ in range(count)
        ]
        seeds = [rng.randrange(1 << 40) for _ in range(count)]
        wanted = choose_rows(
            scores, settings, [torch.Generator().manual_seed(seed) for seed in seeds]
        )
        uniforms = torch.empty(count, 1, dtype=torch.float64)
        for place, seed in enumerate(seeds):
            uniforms[place].uniform_(generator=torch.Generator().manual_seed(seed))
        limits = limits_of(settings)
        assert draw(scores, limits, uniforms)[:, 0].tolist() == wanted


def limits_of(settings: list[SamplingSettings]) -> Tensor:
    rows = [
        (1.0, 0.0, 1.0, 0.0) if s.temperature == 0 else (s.temperature, s.top_k, s.top_p, s.min_p)
        for s in settings
    ]
    return torch.tensor(rows, dtype=torch.float64).T[:, :, None].contiguous()


def test_the_ends_of_the_unit_interval_draw_the_ends_of_what_is_kept() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]])
    limits = limits_of([SamplingSettings(temperature=1.0, top_k=4, top_p=1.0, min_p=0.0)])
    below_one = torch.nextafter(torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    assert draw(scores, limits, torch.zeros(1, 1).double()).tolist() == [[1]]
    assert draw(scores, limits, below_one).tolist() == [[0]]
    limits[3] = 0.2  # e⁻¹ is kept, e⁻² is not
    assert draw(scores, limits, below_one).tolist() == [[3]]


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({}, True), ({"temperature": 0, "top_k": 0}, True), ({"top_k": 0}, False),
        ({"top_k": MOST_KEPT + 1}, False), ({"logprobs": 0}, False), ({"top_k": MOST_KEPT}, True),
    ],
)  # fmt: skip
def test_what_the_device_can_draw(changes: dict[str, Any], served: bool) -> None:
    assert plain(SamplingSettings(**changes)) is served


# ---- the step


def test_a_step_asks_nothing_of_the_host(make_model: Make, tokenizer: Tokenizer) -> None:
    for changes in ({}, LEARNED):
        model = make_model(**changes).to("meta")
        cache = KVCache(model.config, 4, torch.device("meta"), torch.float64)
        for rows, only_greedy in ((1, True), (4, False)):
            step = Step(model, cache, rows, tokenizer.vocab_size, greedy=only_greedy)
            step.compute()
        with pytest.raises((RuntimeError, NotImplementedError)):
            step.ids.tolist()


def test_buckets_are_powers_of_two_up_to_all_rows(make_model: Make, tokenizer: Tokenizer) -> None:
    graphs = running_ahead(make_model(), tokenizer, 11).graphs
    assert graphs is not None
    assert [graphs.bucket(n) for n in range(1, 12)] == [1, 2, 4, 4, 8, 8, 8, 8, 11, 11, 11]


def test_the_next_step_is_queued_before_this_one_is_read(
    make_chain: Make, tokenizer: Tokenizer, watched: Watched
) -> None:
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    logits[:, 7] = 1.0
    engine = running_ahead(make_chain(logits), tokenizer, 2)
    (done,) = engine.complete([Request([5], greedy(max_tokens=6))])
    assert done.ids == [7] * 6
    # The first token comes with the prompt; nothing is computed beyond the last.
    assert watched.calls == ["launch", *["launch", "read"] * 4, "read"]


def test_a_token_after_the_end_is_dropped(
    make_chain: Make, tokenizer: Tokenizer, watched: Watched
) -> None:
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    logits[5, 6] = logits[6, 7] = logits[7, tokenizer.turn_end] = 1.0
    engine = running_ahead(make_chain(logits), tokenizer, 2)
    (done,) = engine.complete([Request([5], greedy())])
    assert (done.ids, done.finish_reason) == ([6, 7], "stop")
    assert watched.calls == ["launch", *["launch", "read"] * 2, "read"]


# ---- the engine


@pytest.mark.parametrize("shape", [{}, LEARNED], ids=["rotary", "learned"])
@pytest.mark.parametrize("rows", [1, 3, 5, 16])
def test_ragged_rows_that_join_and_leave_say_what_each_says_alone(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, watched: Watched, rows: int,
    shape: dict[str, Any],
) -> None:  # fmt: skip
    model = make_model(**shape)
    engine = running_ahead(model, tokenizer, rows, chunk=rng.choice((7, 64)))
    for _ in range(3):
        requests = [
            Request(some(rng, tokenizer), greedy(max_tokens=rng.randrange(2, 25)))
            for _ in range(rng.randrange(4, 9))
        ]
        together = [key(done) for done in engine.complete(requests)]
        assert together == [alone(model, tokenizer, request) for request in requests]
    assert watched.calls.count("launch") >= watched.calls.count("read") > 0


@pytest.mark.parametrize("host", [False, True], ids=["device", "some for the host"])
@pytest.mark.parametrize("rows", [1, 4])
def test_sampled_rows_say_what_each_says_alone(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random, watched: Watched, rows: int,
    host: bool,
) -> None:  # fmt: skip
    model = spaced_chain(make_chain, rng, tokenizer)
    engine = running_ahead(model, tokenizer, rows)
    requests = [
        Request(
            some(rng, tokenizer),
            for_the_host(rng) if host and rng.random() < 0.4 else sampled(rng, stop=["e", "小"]),
        )
        for _ in range(12)
    ]
    requests.append(Request([5], greedy(max_tokens=9)))
    together = [key(done) for done in engine.complete(requests)]
    assert together == [alone(model, tokenizer, request) for request in requests]


def test_requests_that_arrive_while_the_device_is_ahead(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = running_ahead(model, tokenizer, 3)
    endless = {str(n): -100.0 for n in tokenizer.stops}
    requests = [
        Request(some(rng, tokenizer, 10), greedy(max_tokens=rng.randrange(8, 25)), key=n)
        for n in range(8)
    ]
    requests[3] = requests[3]._replace(sampling=greedy(logit_bias=endless))
    late = iter(requests[1:])
    clock = iter(range(1000))

    def arriving(free: int) -> list[Request]:
        coming = next(late, None) if next(clock) % 4 == 3 else None
        return [] if coming is None else [coming]

    done = {e.key: e for e in engine.run(requests[:1], arriving=arriving) if type(e) is Completion}
    while (rest := next(late, None)) is not None:
        done[rest.key] = engine.complete([rest])[0]
    assert {n: key(d) for n, d in done.items()} == {
        r.key: alone(model, tokenizer, r) for r in requests
    }


def test_a_grown_cache_has_graphs_of_its_own(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model(context=300)
    engine = running_ahead(model, tokenizer, 4)
    assert engine.graphs is not None
    bias = {str(n): -100.0 for n in tokenizer.stops}
    short = Request(some(rng, tokenizer, 20), greedy(max_tokens=4))
    assert key(engine.complete([short])[0]) == alone(model, tokenizer, short)
    old = [step for step, _ in engine.graphs._steps.values()]
    requests = [Request(some(rng, tokenizer, n), greedy(max_tokens=60)) for n in (100, 5, 127)]
    requests.append(Request(some(rng, tokenizer, 90), greedy(max_tokens=170, logit_bias=bias)))
    together = [key(done) for done in engine.complete(requests)]
    assert together == [alone(model, tokenizer, request) for request in requests]
    (again_short,) = engine.complete([short])
    assert key(again_short) == alone(model, tokenizer, short)
    new = [step for step, _ in engine.graphs._steps.values()]
    assert not {id(step) for step in old} & {id(step) for step in new}
    assert all(step.capacity == engine._cache.capacity > 128 for step in new)


def test_a_reply_goes_on_to_the_end_of_the_context(make_chain: Make, tokenizer: Tokenizer) -> None:
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    logits[:, 7] = 1.0
    engine = running_ahead(make_chain(logits, context=200), tokenizer, 3)
    requests = [Request([5] * n, greedy(max_tokens=500)) for n in (199, 120, 2)]
    done = engine.complete(requests)
    assert [d.ids for d in done] == [[7] * (200 - n) for n in (199, 120, 2)]
    assert {d.finish_reason for d in done} == {"length"}


def test_rows_beyond_those_that_speak_stand_still(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    logits[:, 7] = 1.0
    engine = running_ahead(make_chain(logits, context=300), tokenizer, 4)
    waiting = some(rng, tokenizer, 120)
    engine.complete([Request(ids, greedy(max_tokens=1)) for ids in ([1], [2], [3], waiting)])
    assert engine._cache.lengths[3] == len(waiting)
    held = [store[3, :120].clone() for pair in engine._cache.stores(4) for store in pair]
    done = engine.complete([Request([n], greedy(max_tokens=30)) for n in (4, 5, 6)])
    assert [reply.ids for reply in done] == [[7] * 30] * 3
    assert engine._cache.capacity == 128
    now = [store[3, :120] for pair in engine._cache.stores(4) for store in pair]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))


def test_conversations_go_on_from_what_the_device_wrote(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = running_ahead(model, tokenizer, 5)
    histories = [some(rng, tokenizer, 12) for _ in range(3)]
    for turn in range(6):
        at = rng.randrange(3)
        if turn % 2:
            requests = [Request(histories[at], greedy(max_tokens=5))]
        else:
            requests = [Request(history, greedy(max_tokens=5)) for history in histories]
        done = engine.complete(requests)
        assert [key(d) for d in done] == [alone(model, tokenizer, r) for r in requests]
        histories = [h[-40:] for h in histories] if turn == 4 else histories
        histories[at] = [*histories[at], *done[0].ids[:4], *some(rng, tokenizer, 2)]


@pytest.mark.parametrize("after", [1, 2, 3, 7])
def test_cancelled_rows_keep_what_they_said_and_leave_nothing(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, after: int
) -> None:
    model = make_model()
    engine = running_ahead(model, tokenizer, 3)
    requests = [Request(some(rng, tokenizer, 10), greedy(), key=n) for n in range(3)]
    whole = [alone(model, tokenizer, request) for request in requests]
    steps = iter(range(100))
    shown = dict.fromkeys(range(3), "")
    for event in engine.run(requests, cancelled=lambda: next(steps) >= after):
        if isinstance(event, Piece):
            shown[event.key] += event.text
            continue
        ids, _, reason = whole[event.key]
        assert event.ids == ids[: len(event.ids)]
        assert event.text == shown[event.key]
        assert event.finish_reason in ("cancelled", reason)
    abandoned = engine.run(requests)
    next(abandoned)
    abandoned.close()
    assert [key(done) for done in engine.complete(requests)] == whole


def test_what_cannot_be_captured_is_written_step_by_step(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(step: Callable[[], None], device: torch.device, pool: Any) -> Callable[[], None]:
        step()
        raise RuntimeError("operation not permitted when stream is capturing")

    model = make_model()
    engine = Engine(model, tokenizer, 3)
    engine.graphs = Graphs(model, engine._cache, tokenizer.vocab_size, refuse)
    requests = [Request(some(rng, tokenizer), greedy(max_tokens=9)) for _ in range(5)]
    together = [key(done) for done in engine.complete(requests)]
    assert together == [alone(model, tokenizer, request) for request in requests]
    said = capsys.readouterr()
    assert said.out == ""
    assert " ".join(said.err.split()).count("CUDA graphs are not used") == 1


def test_other_weights_have_graphs_of_their_own(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = running_ahead(model, tokenizer, 2)
    request = Request(some(rng, tokenizer, 10), greedy(max_tokens=9))
    engine.complete([request])
    for weight in list(model.parameters()):
        weight.data = weight.data.flip(0).clone()
    engine.forget()
    assert engine.graphs is not None
    assert not engine.graphs._steps
    assert key(engine.complete([request])[0]) == alone(model, tokenizer, request)


def test_a_cpu_has_no_graphs(make_model: Make, tokenizer: Tokenizer) -> None:
    assert Engine(make_model(), tokenizer).graphs is None


# ---- threads


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "ahead"])
def test_many_threads_ask_and_cancel_at_once(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, graphs: bool
) -> None:
    model = make_model()
    engine = running_ahead(model, tokenizer, 4) if graphs else Engine(model, tokenizer, 4)
    system = some(rng, tokenizer, 20)
    asked = [
        [
            Request([*system, *some(rng, tokenizer, 8)], greedy(max_tokens=rng.randrange(1, 9)), n)
            for n in range(20)
        ]
        for _ in range(4)
    ]
    plans = [[rng.choice((0, 1, 2, 4)) for _ in range(4)] for _ in range(4)]
    whole = [[alone(model, tokenizer, r) for r in requests] for requests in asked]
    faults: list[str] = []
    served = [0] * 4

    def judge(number: int, event: Piece | Completion) -> None:
        if isinstance(event, Piece):
            return
        served[number] += 1
        ids, _, reason = whole[number][event.key]
        if event.finish_reason == "cancelled":
            right = event.ids == ids[: len(event.ids)]
        else:
            right = (event.ids, event.finish_reason) == (ids, reason)
        if not right:
            faults.append(f"thread {number}, request {event.key}: {event.ids} for {ids}")

    def ask(number: int) -> None:
        for begin, how in zip(range(0, 20, 5), plans[number], strict=True):
            requests = asked[number][begin : begin + 5]
            if how == 4:  # half read, then closed
                stream = engine.run(requests)
                judge(number, next(stream))
                stream.close()
            elif how:
                steps = iter(range(10**6))
                last = 3 * how
                for event in engine.run(requests, lambda s=steps, last=last: next(s) >= last):
                    judge(number, event)
            for event in engine.run(requests):
                judge(number, event)

    def guarded(number: int) -> None:
        try:
            ask(number)
        except Exception as error:  # shown by the test, not lost with the thread
            faults.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not faults
    assert all(count >= 20 for count in served)


# ---- on a GPU


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_captured_graphs_say_what_the_eager_engine_says(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, rows: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = make_model(context=300).cuda()
    eager = Engine(model, tokenizer, rows)
    eager.graphs = None
    quick = Engine(model, tokenizer, rows)
    assert quick.graphs is not None
    for longest in (20, 60, 150):
        requests = [
            Request(some(rng, tokenizer), greedy(max_tokens=rng.randrange(2, longest)))
            for _ in range(6)
        ]
        wanted = [key(done) for done in eager.complete(requests)]
        assert [key(done) for done in quick.complete(requests)] == wanted
    assert quick.graphs.usable
    assert quick.graphs._steps
    assert "CUDA graphs are not used" not in capsys.readouterr().err


@pytest.mark.gpu
@needs_cuda
def test_captured_graphs_draw_what_the_host_draws(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = spaced_chain(make_chain, rng, tokenizer).cuda()
    eager, quick = Engine(model, tokenizer, 4), Engine(model, tokenizer, 4)
    eager.graphs = None
    requests = [Request(some(rng, tokenizer), sampled(rng)) for _ in range(12)]
    wanted = [key(done) for done in eager.complete(requests)]
    assert [key(done) for done in quick.complete(requests)] == wanted
    assert quick.graphs is not None
    assert quick.graphs.usable


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_captured_step_is_the_plain_one(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, dtype: torch.dtype
) -> None:
    """The number formats of use, whose attention is another kernel: bit by bit on one GPU."""
    model = make_model(head_dim=16).to("cuda", dtype)
    said = []
    for capture in (None, again):
        engine = Engine(model, tokenizer, 4)
        if capture is not None:
            engine.graphs = Graphs(model, engine._cache, tokenizer.vocab_size, capture)
        assert engine.graphs is not None
        state = random.Random(3)
        requests = [
            Request(some(state, tokenizer, 9 * n + 1), greedy(max_tokens=20)) for n in range(4)
        ]
        said.append([key(done) for done in engine.complete(requests)])
        assert engine.graphs.usable
    assert said[0] == said[1]
