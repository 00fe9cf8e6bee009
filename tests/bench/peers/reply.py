"""One program that writes replies, in a process of its own: `decode.py` asks, this answers.

python tests/bench/peers/reply.py PEER FOLDER KIND THREADS

PEER: chatbench, transformers, ctranslate2, llama.cpp, or read, which reads memory. First a line
{"ready": version}, or {"missing": why}; then for each line {"prompts": [[id, ...], ...], "new": n}
on stdin one line {"seconds": s, "first": [id, ...]} on stdout, with the first id of each reply.
Every reply has exactly n greedy tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[list[list[int]], int], list[int]]


def chatbench(folder: Path, kind: str, threads: int) -> tuple[str, Answer]:
    import torch

    import chatbench
    from chatbench.engine.engine import Engine, Request
    from chatbench.model.folder import open_model
    from chatbench.settings import SamplingSettings

    torch.set_num_threads(threads)
    narrow = {"bf16": torch.bfloat16}.get(kind, torch.float32)
    quantize = kind if kind in ("int8", "int4") else "none"
    opened = open_model(folder, torch.device("cpu"), narrow, quantize=quantize)
    opened.tokenizer.stops = frozenset()

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        engine = Engine(opened.model, opened.tokenizer, len(prompts))
        settings = SamplingSettings(temperature=0.0, max_tokens=new, speculate="off")
        done = engine.complete([Request(ids, settings) for ids in prompts])
        assert all(len(reply.ids) == new for reply in done)
        return [reply.ids[0] for reply in done]

    return chatbench.__version__, answer


def transformers(folder: Path, kind: str, threads: int) -> tuple[str, Answer]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        ids = torch.tensor(prompts)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert found.shape[1] == ids.shape[1] + new
        return found[:, ids.shape[1]].tolist()

    return transformers.__version__, answer


def ctranslate2(folder: Path, kind: str, threads: int) -> tuple[str, Answer]:
    import ctranslate2
    import transformers

    place = folder.parent / f"ctranslate2-{kind}"
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(place), quantization=kind, force=True)
    # Its reader wants a token in every place, also where the tokenizer has none.
    told = json.loads((place / "config.json").read_text())
    spare = next(value for value in told.values() if isinstance(value, str) and value)
    filled = {
        key: spare if value is None and key.endswith("_token") else value
        for key, value in told.items()
    }
    (place / "config.json").write_text(json.dumps(filled))
    model = ctranslate2.Generator(
        str(place), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
    )
    spell = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        found = model.generate_batch(
            [spell(ids) for ids in prompts], max_length=new, min_length=new, beam_size=1,
            sampling_topk=1, include_prompt_in_result=False, max_batch_size=len(prompts),
        )  # fmt: skip
        assert all(len(reply.sequences_ids[0]) == new for reply in found)
        return [reply.sequences_ids[0][0] for reply in found]

    return ctranslate2.__version__, answer


def llama_cpp(folder: Path, kind: str, threads: int) -> tuple[str, Answer]:
    """`kind` is the file's; "plain" after it keeps weights as they lie in the file, for processors
    on which the rearranged ones end in an illegal instruction."""
    import llama_cpp as lib
    import numpy as np

    kind, _, plain = kind.partition(" ")
    settings = lib.llama_model_default_params()
    settings.use_extra_bufts = not plain
    log = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(log, None)
    model = lib.llama_model_load_from_file(str(folder.parent / f"{kind}.gguf").encode(), settings)
    if not model:
        raise RuntimeError("the file was not loaded")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    contexts: dict[int, Any] = {}

    def context_of(rows: int, places: int) -> Any:
        if rows not in contexts:
            wanted = lib.llama_context_default_params()
            wanted.n_ctx, wanted.n_seq_max, wanted.n_batch = rows * places, rows, rows * places
            wanted.n_threads = wanted.n_threads_batch = threads
            contexts[rows] = lib.llama_init_from_model(model, wanted)
        return contexts[rows]

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        rows, length = len(prompts), len(prompts[0])
        context = context_of(rows, _ROOM)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(rows * length, 0, rows)
        first: list[int] = []
        step = [(row, at, ids[at]) for row, ids in enumerate(prompts) for at in range(length)]
        for written in range(new):
            batch.n_tokens = len(step)
            asked = []
            for slot, (row, at, number) in enumerate(step):
                batch.token[slot], batch.pos[slot] = number, at
                batch.n_seq_id[slot], batch.seq_id[slot][0] = 1, row
                batch.logits[slot] = at == length + written - 1
                asked += [slot] if batch.logits[slot] else []
            if lib.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            scores = (lib.llama_get_logits_ith(context, slot) for slot in asked)
            chosen = [int(np.ctypeslib.as_array(row, (size,)).argmax()) for row in scores]
            first = first or chosen
            step = [(row, length + written, number) for row, number in enumerate(chosen)]
        lib.llama_batch_free(batch)
        return first

    # The callback must outlive the model.
    answer.log = log  # type: ignore[attr-defined]
    return lib.__version__, answer


def read(folder: Path, kind: str, threads: int) -> tuple[str, Answer]:
    """`new` is so many bytes here: they are summed as float32 by torch, on as many threads."""
    import torch

    torch.set_num_threads(threads)
    held: dict[int, torch.Tensor] = {}

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        if new not in held:
            held[new] = torch.ones(new // 4)
        float(held[new].sum())
        return []

    return f"torch.sum, torch {torch.__version__}", answer


PEERS = {"chatbench": chatbench, "transformers": transformers, "ctranslate2": ctranslate2,
         "llama.cpp": llama_cpp, "read": read}  # fmt: skip
# Tokens of a row's prompt and reply together, at most.
_ROOM = 512


def main() -> None:
    peer, folder, kind, threads = sys.argv[1:]
    try:
        version, answer = PEERS[peer](Path(folder), kind, int(threads))
    except Exception as error:  # whatever it is, the others go on
        print(json.dumps({"missing": f"{type(error).__name__}: {error}".splitlines()[0]}))
        return
    print(json.dumps({"ready": version}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        first = answer(asked["prompts"], asked["new"])
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "first": first}), flush=True)


if __name__ == "__main__":
    main()
