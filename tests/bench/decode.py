"""Tokens a second of one reply, and seconds to read its prompt: exact, int8 and int4 weights beside
transformers' generate, and llama.cpp (when it is installed) on our exports of the same weights.

python tests/bench/decode.py [ROUNDS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from chatbench.engine.engine import Engine, Request
from chatbench.export.run import export
from chatbench.model.folder import open_model, stored_weights, write_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import ExportSettings, SamplingSettings
from chatbench.text.tokenizer import train_tokenizer

CONFIG = ModelConfig(2048, 12, 768, 12, 4, 64, 2048, 1024)
PROMPT, NEW = 256, 64
Answer = Callable[[list[int], int], object]


def make_folder(place: Path) -> Path:
    words = [f"word{n} 茶{chr(0x4E00 + n)} tea" for n in range(2000)]
    tokenizer = train_tokenizer(words, CONFIG.vocab_size)
    model = GPT(CONFIG._replace(vocab_size=tokenizer.vocab_size))
    initialise(model, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=0.02)
    place.mkdir()
    write_model(place, model.config, stored_weights(model), tokenizer)
    return place


def ours(folder: Path, quantize: str) -> Answer:
    opened = open_model(folder, torch.device("cpu"), quantize=quantize)
    # No token ends a reply, so that all write as much.
    opened.tokenizer.stops = frozenset()

    def answer(ids: list[int], new: int) -> object:
        engine = Engine(opened.model, opened.tokenizer, max_rows=1)
        return engine.complete([Request(ids, SamplingSettings(temperature=0.0, max_tokens=new))])

    return answer


def transformers_generate(folder: Path) -> Answer:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def answer(ids: list[int], new: int) -> object:
        return model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=new, do_sample=False,
        )  # fmt: skip

    return answer


def llama_cpp(folder: Path, kind: str) -> Answer:
    from llama_cpp import Llama

    path = folder.parent / f"{kind}.gguf"
    export(ExportSettings(model=str(folder), out=str(path), to="gguf", quantize=kind))  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    model = Llama(
        str(path), n_ctx=CONFIG.context, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def answer(ids: list[int], new: int) -> object:
        model.reset()
        found = model.generate(ids, temp=0.0, top_k=1)
        return [next(found) for _ in range(new)]

    return answer


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place, "model"))
        answers = {f"ours, {kind}": ours(folder, kind) for kind in ("none", "int8", "int4")}
        answers["transformers, float32"] = transformers_generate(folder)
        if find_spec("llama_cpp"):
            kinds = ("f32", "q8_0", "q4_0")
            answers |= {f"llama.cpp, {kind}": llama_cpp(folder, kind) for kind in kinds}
        ids = torch.randint(0, 1000, (PROMPT,)).tolist()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in answers}
        for _ in range(rounds + 1):
            for name, answer in answers.items():
                begin = time.perf_counter()
                answer(ids, 1)
                middle = time.perf_counter()
                answer(ids, NEW)
                end = time.perf_counter()
                times[name].append((middle - begin, end - middle - (middle - begin)))
        for name, pairs in times.items():
            first = median(first for first, _ in pairs[1:])
            rest = median(rest for _, rest in pairs[1:])
            print(f"{name:<22} prompt {1000 * first:7.1f} ms · {(NEW - 1) / rest:6.1f} tok/s")


if __name__ == "__main__":
    main()
