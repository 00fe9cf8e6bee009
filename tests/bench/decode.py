"""Tokens a second of replies, beside transformers, ctranslate2 and llama.cpp on the same weights.

One reply (a prompt of 128 tokens, 128 new ones) and 16 at once, greedy, on random weights of two
GPT-2 shapes. Every program is a process of its own that waits while another computes; they take
turns, and ratios are medians over the turns. How fast memory is read is measured in the same turns.
A peer that is not installed is named and left out.

python tests/bench/decode.py [--rounds N] [--shapes 124M,15M] [--only SUBSTRING,...] [--threads N]
    [--peer-python PYTHON] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from chatbench.export.run import export
from chatbench.model.folder import stored_weights, write_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import ExportSettings
from chatbench.text.tokenizer import train_tokenizer

SCRIPT = Path(__file__).parent / "peers" / "reply.py"
# Bits that a weight takes, scales included.
BITS = {"fp32": 32, "f32": 32, "bf16": 16, "int8": 8, "q8_0": 8.5, "int4": 4.5, "q4_0": 4.5}


def gpt2(layers: int, width: int, heads: int, vocabulary: int) -> ModelConfig:
    return ModelConfig(
        vocabulary, layers, width, heads, heads, width // heads, 4 * width, 1024, norm_eps=1e-5,
        model_type="gpt2", positions="learned", norm="layer", activation="gelu_tanh", gated=False,
        qk_norm=False, qkv_bias=True, out_bias=True, ffn_bias=True,
    )  # fmt: skip


SHAPES = {
    "124M": gpt2(12, 768, 12, 50_257),
    "15M": gpt2(6, 384, 6, 12_288),
    "toy": gpt2(2, 64, 2, 320),
}


class Peer(NamedTuple):
    """One line of the table."""

    program: str
    kind: str
    without_c: bool = False

    @property
    def name(self) -> str:
        return f"{self.program} {self.kind}" + (", no compiler" if self.without_c else "")


PEERS = [
    *(Peer("chatbench", kind) for kind in ("fp32", "bf16", "int8", "int4")),
    *(Peer("chatbench", kind, without_c=True) for kind in ("fp32", "bf16")),
    *(Peer("transformers", kind) for kind in ("fp32", "bf16")),
    Peer("ctranslate2", "int8"),
    *(Peer("llama.cpp", kind) for kind in ("f32", "q8_0", "q4_0", "q8_0 plain", "q4_0 plain")),
]
INT8 = ("ctranslate2 int8", "llama.cpp q8_0", "llama.cpp q8_0 plain")
INT4 = ("llama.cpp q4_0", "llama.cpp q4_0 plain")
OURS = tuple(f"chatbench {kind}" for kind in ("fp32", "bf16", "int8", "int4"))
# Rows at once, ours (the fastest of several), peers (the fastest of several), what is wanted.
TARGETS = [
    (1, ("chatbench int8",), INT8, 2.5),
    (1, ("chatbench int8",), ("transformers fp32",), 6.0),
    (1, ("chatbench int4",), INT4, 3.0),
    (1, ("chatbench bf16",), ("transformers fp32",), 2.0),
    (1, ("chatbench fp32, no compiler",), ("transformers fp32",), 1.0),
    (1, ("chatbench bf16, no compiler",), ("chatbench fp32, no compiler",), 1.0),
    (16, OURS, ("ctranslate2 int8",), 2.0),
    (16, OURS, ("transformers bf16",), 2.5),
]


class Worker:
    """A program that is running."""

    def __init__(self, python: str, peer: Peer, folder: Path, threads: int) -> None:
        """Raises RuntimeError when it does not come up."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if peer.without_c:
            environment["CHATBENCH_LINEAR"] = "torch"
        self.peer = peer
        self._process = subprocess.Popen(
            [python, str(SCRIPT), peer.program, str(folder), peer.kind, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        try:
            said = self._line()
            if "missing" in said:
                raise RuntimeError(said["missing"])
        except RuntimeError:
            self.close()
            raise
        self.version = said["ready"]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"it ended with status {self._process.wait()}")

    def seconds(self, prompts: list[list[int]], new: int) -> float:
        """Raises RuntimeError when the program dies over it."""
        return float(self.answer(prompts, new)["seconds"])

    def answer(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """`seconds`, and the `first` id of each reply."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"it ended with status {self._process.wait()}") from None
        return self._line()

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


class Turn(NamedTuple):
    """Seconds of one round: to the first token, and to the last."""

    first: float
    whole: float


@contextmanager
def folder_of(config: ModelConfig) -> Iterator[Path]:
    """A model folder of random weights, and its GGUF files beside it."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=9)) for _ in range(config.vocab_size)]
    tokenizer = train_tokenizer([" ".join(words)], config.vocab_size)
    model = GPT(config._replace(vocab_size=tokenizer.vocab_size))
    initialise(model, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=0.02)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        folder.mkdir()
        write_model(folder, model.config, stored_weights(model), tokenizer)
        for kind in ("f32", "q8_0", "q4_0"):
            out = str(Path(place, f"{kind}.gguf"))
            export(ExportSettings(model=str(folder), out=out, to="gguf", quantize=kind))
        yield folder


def start(
    peers: list[Peer], folder: Path, threads: int, python: str, asked: dict[int, list[list[int]]]
) -> Iterator[Worker]:
    """Those that come up and answer once, which warms them up. How many of their first tokens are
    those of the first program says whether they compute the same model."""
    wanted: list[int] = []
    for peer in peers:
        other = peer.program == "ctranslate2"
        try:
            worker = Worker(python if other else sys.executable, peer, folder, threads)
        except (RuntimeError, OSError) as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
            continue
        try:
            found = [n for rows in asked.values() for n in worker.answer(rows, 2)["first"]]
        except RuntimeError as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
            worker.close()
            continue
        wanted = wanted or found
        same = sum(a == b for a, b in zip(found, wanted, strict=True))
        print(
            f"{peer.name}: {worker.version}, {same} of {len(wanted)} first tokens alike",
            file=sys.stderr,
        )
        yield worker


def measure(
    workers: list[Worker], asked: dict[int, list[list[int]]], new: int, rounds: int,
    reader: Worker, sizes: dict[str, int],
) -> tuple[dict[tuple[str, int], list[Turn]], dict[str, list[float]]]:  # fmt: skip
    """Turns of each program at each number of rows; bytes a second for each number format."""
    turns: dict[tuple[str, int], list[Turn]] = {}
    speeds: dict[str, list[float]] = {}
    for number in range(rounds):
        for rows, prompts in asked.items():
            for worker in workers:
                turn = Turn(worker.seconds(prompts, 1), worker.seconds(prompts, new))
                turns.setdefault((worker.peer.name, rows), []).append(turn)
        for kind, size in sizes.items():
            least = min(reader.seconds([], size) for _ in range(5))
            speeds.setdefault(kind, []).append(size / least)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return turns, speeds


def rates(turns: list[Turn], rows: int, new: int) -> list[float]:
    """Tokens a second after the first, for each turn; nan where that is too short to be told."""
    first = median(turn.first for turn in turns)
    return [
        rows * (new - 1) / (turn.whole - first) if turn.whole > 1.1 * first else math.nan
        for turn in turns
    ]


def report(
    title: str, turns: dict[tuple[str, int], list[Turn]], speeds: dict[str, list[float]],
    sizes: dict[str, int], new: int,
) -> None:  # fmt: skip
    counts = sorted({rows for _, rows in turns})
    heads = [f"{rows} at once: prompt ms | decoding tok/s | with prompt tok/s" for rows in counts]
    print(f"\n### {title}\n\n| | {' | '.join(heads)} | share of the read limit |")
    print("|---" * (2 + 3 * len(counts)) + "|")
    for name in dict.fromkeys(name for name, _ in turns):
        cells = []
        for rows in counts:
            own = turns[name, rows]
            cells.append(f"{1000 * median(turn.first for turn in own):.1f}")
            cells.append(f"{median(rates(own, rows, new)):.1f}")
            cells.append(f"{median(rows * new / turn.whole for turn in own):.1f}")
        kind = name.partition(",")[0].split()[1]
        alone = zip(rates(turns[name, 1], 1, new), speeds[kind], strict=True)
        share = median(written * sizes[kind] / speed for written, speed in alone)
        print(f"| {name} | {' | '.join(cells)} | {share:.0%} |")
    print("\n| format | bytes a token | read at | limit |\n|---|---|---|---|")
    for kind, found in speeds.items():
        speed = median(found)
        print(f"| {kind} | {sizes[kind] / 1e6:.0f} MB | {speed / 1e9:.1f} GB/s | "
              f"{speed / sizes[kind]:.0f} tok/s |")  # fmt: skip
    print("\n| rows | ours | peer | ratio (lowest to highest) | wanted |\n|---|---|---|---|---|")
    for rows, ours, peers, wanted in TARGETS:
        mine, its = ([n for n in names if (n, rows) in turns] for names in (ours, peers))
        if not mine or not its:
            continue
        best, rival = (
            max(names, key=lambda n: median(rates(turns[n, rows], rows, new)))
            for names in (mine, its)
        )
        both = (rates(turns[name, rows], rows, new) for name in (best, rival))
        ratios = [a / b for a, b in zip(*both, strict=True)]
        print(f"| {rows} | {best} | {rival} | {median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}) | {wanted} |")  # fmt: skip


def bytes_a_token(config: ModelConfig) -> dict[str, int]:
    """What one token reads of all matrices, the tied head included, for each number format."""
    block = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.ffn_size
    weights = config.n_layers * block + config.vocab_size * config.hidden_size
    return {kind: int(weights * bits / 8) // 4 * 4 for kind, bits in BITS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default="124M,15M")
    parser.add_argument("--only", default="", help="lines whose names contain one of these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer-python", default=sys.executable, help="has ctranslate2")
    parser.add_argument("--smoke", action="store_true", help="tiny shape, few tokens")
    chosen = parser.parse_args()
    prompt, new = (8, 4) if chosen.smoke else (128, 128)
    rounds = 2 if chosen.smoke else chosen.rounds
    wanted = chosen.only.split(",")
    peers = [peer for peer in PEERS if any(part in peer.name for part in wanted)]
    draw = random.Random(1)
    asked = {
        rows: [[draw.randrange(270, 310) for _ in range(prompt)] for _ in range(rows)]
        for rows in (1, 16)
    }
    for shape in ["toy"] if chosen.smoke else chosen.shapes.split(","):
        with ExitStack() as stack:
            folder = stack.enter_context(folder_of(SHAPES[shape]))
            sizes = bytes_a_token(SHAPES[shape])
            reader = Worker(sys.executable, Peer("read", "all"), folder, chosen.threads)
            stack.callback(reader.close)
            workers = []
            for worker in start(peers, folder, chosen.threads, chosen.peer_python, asked):
                stack.callback(worker.close)
                workers.append(worker)
            turns, speeds = measure(workers, asked, new, rounds, reader, sizes)
            title = f"{shape}, {prompt} + {new} tokens, {chosen.threads} threads"
            report(f"{title}, memory read by {reader.version}", turns, speeds, sizes, new)


if __name__ == "__main__":
    main()
