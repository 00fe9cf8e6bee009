"""Model folders made to do harm: each ends in one line and exit code 4, and does nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.cli import run
from chatbench.errors import IntegrityError
from chatbench.model.folder import CONFIG, WEIGHTS, open_model, stored_weights, write_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.storage import FORMAT, new_folder
from chatbench.text.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer

CPU = torch.device("cpu")
INDEX = f"{WEIGHTS}.index.json"
CANARY = "canary"
# Bytes of a pickle that, when it is opened, makes a file.
PICKLE = b"cos\nsystem\n(S'touch %s'\ntR."
Harm = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _never_wait() -> Iterator[None]:
    """What hangs ends in an error."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest little model."""
    folder = tmp_path_factory.mktemp("good") / "model"
    write_small(folder, train_tokenizer(["tea and paper, 茶和纸"] * 3, 270))
    return folder


def write_small(folder: Path, tokenizer: Tokenizer) -> None:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layers=2, hidden_size=8, n_heads=2, n_kv_heads=1,
        head_dim=4, ffn_size=16, context=32,
    )  # fmt: skip
    model = GPT(config)
    initialise(model, 0)
    write_model(folder, config, stored_weights(model), tokenizer)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


# ---- ways to do harm


def config(**changes: Any) -> Harm:
    def harm(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text("utf-8")) | changes
        (folder / CONFIG).write_text(json.dumps(raw), "utf-8")

    return harm


def content(name: str, data: bytes) -> Harm:
    """Other bytes in a file; CANARY in them becomes a path outside of the folder."""
    return lambda folder: (folder / name).write_bytes(
        data.replace(b"CANARY", os.fsencode(folder.parent / CANARY))
    )


def huge(name: str, size: int) -> Harm:
    """A file that is long and almost empty on the disk."""

    def harm(folder: Path) -> None:
        with open(folder / name, "ab") as handle:
            handle.truncate(size)

    return harm


def fifo(name: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return harm


def link(name: str, target: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return harm


def directory(name: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return harm


def together(*harms: Harm) -> Harm:
    return lambda folder: [harm(folder) for harm in harms]


def index(shard: object) -> Harm:
    """The weights in a file outside of the folder, and an index that leads there."""

    def harm(folder: Path) -> None:
        names = list(json.loads(header_of(folder / WEIGHTS)))
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        placed = {name: shard for name in names if name != "__metadata__"}
        (folder / INDEX).write_text(json.dumps({"weight_map": placed}), "utf-8")

    return harm


def header_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def many_layers(folder: Path) -> None:
    """Weights for as many layers as are said, but of no size."""
    names = json.loads(header_of(folder / WEIGHTS))
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    layers = {f"model.layers.{n}.mlp.up_proj.weight": entry for n in range(20_000)}
    text = json.dumps({**dict.fromkeys(names, entry), "__metadata__": {}, **layers}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    config(num_hidden_layers=20_000)(folder)


def edit_tokenizer(change: Callable[[dict[str, Any]], object]) -> Harm:
    def harm(folder: Path) -> None:
        raw = json.loads((folder / TOKENIZER_FILE).read_text("utf-8"))
        change(raw)
        (folder / TOKENIZER_FILE).write_text(json.dumps(raw), "utf-8")

    return harm


def deep(count: int = 200_000) -> bytes:
    return b'{"a":' * count + b"1" + b"}" * count


NUMBERS = {
    "n_layers 10^9": config(num_hidden_layers=10**9),
    "vocabulary 10^12": config(vocab_size=10**12),
    "width 10^9": config(hidden_size=10**9),
    "heads 10^9": config(num_attention_heads=10**9),
    "head width 10^12": config(head_dim=10**12),
    "feed-forward 10^15": config(intermediate_size=10**15),
    "context 10^18": config(max_position_embeddings=10**18),
    "layers beyond 64 bits": config(num_hidden_layers=10**30),
    "digits without end": config(num_hidden_layers=int("9" * 4000)),
    "negative": config(hidden_size=-8),
    "zero": config(num_attention_heads=0),
    "a fraction": config(num_hidden_layers=2.5),
    "a text": config(vocab_size="270"),
    "true": config(num_hidden_layers=True),
    "a list": config(hidden_size=[8]),
    "null": config(intermediate_size=None),
    "an object": config(num_attention_heads={"a": 2}),
    "NaN": config(rms_norm_eps=float("nan")),
    "infinity": config(rope_theta=float("inf")),
    "10^999": content(CONFIG, b'{"model_type": "qwen3", "rms_norm_eps": 1e999}'),
    "negative epsilon": config(rms_norm_eps=-1e-6),
    "a text for truth": config(tie_word_embeddings="yes"),
}
CONFIGS = {
    "nested config": content(CONFIG, deep()),
    "config of 100 MB": huge(CONFIG, 100_000_000),
    "config twice": content(CONFIG, b'{"model_type": "qwen3", "model_type": "qwen3"}'),
    "own code": together(
        config(model_type="mine", auto_map={"AutoModelForCausalLM": "code.Model"}),
        content("code.py", b"open('CANARY', 'w')"),
    ),
    "model_type a path": config(model_type="../../qwen3"),
    "model_type with an escape": config(model_type="\x1b[31mqwen3\x07"),
    "quantised": config(quantization_config={"quant_method": "bitsandbytes"}),
}
FILES = {
    "pickle": content(WEIGHTS, PICKLE % b"CANARY"),
    "pickle, protocol 4": content(WEIGHTS, b"\x80\x04" + PICKLE % b"CANARY"),
    "pickle beside": together(
        lambda folder: (folder / WEIGHTS).unlink(),
        content("pytorch_model.bin", PICKLE % b"CANARY"),
    ),
    "zip": content(WEIGHTS, b"PK\x03\x04" + bytes(200)),
    "oversized header": content(WEIGHTS, struct.pack("<Q", 1 << 62) + b'{"w":'),
    "header as large as the file": together(
        content(WEIGHTS, struct.pack("<Q", 3_000_000_000 - 8) + b"{"), huge(WEIGHTS, 3_000_000_000)
    ),
    "nested header": content(WEIGHTS, struct.pack("<Q", len(deep())) + deep()),
    "twenty thousand empty layers": many_layers,
    "index leads out": index("../outside.safetensors"),
    "index leads anywhere": index("/etc/passwd"),
    "index with NUL": index("model\0.safetensors"),
    "index names numbers": index(3),
    "nested index": together(
        lambda folder: (folder / WEIGHTS).unlink(), content(INDEX, deep())
    ),
    "shard leads out": together(
        index("model-1.safetensors"), link("model-1.safetensors", "../outside.safetensors")
    ),
    "manifest leads out": content(
        "manifest.json",
        json.dumps({
            "format": FORMAT, "kind": "model",
            "files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}},
        }).encode(),
    ),
    **{f"FIFO {name}": fifo(name)
       for name in (CONFIG, WEIGHTS, TOKENIZER_FILE, "tokenizer_config.json",
                    "generation_config.json", "chat_template.jinja", "special_tokens_map.json")},
    "FIFO index": together(lambda folder: (folder / WEIGHTS).unlink(), fifo(INDEX)),
    "FIFO adapter": together(
        lambda folder: (folder / WEIGHTS).unlink(), lambda folder: (folder / CONFIG).unlink(),
        fifo("adapter_config.json"),
    ),
    **{f"loop {name}": link(name, name) for name in (CONFIG, WEIGHTS)},
    **{f"device {name}": link(name, "/dev/zero") for name in (CONFIG, WEIGHTS, TOKENIZER_FILE)},
    **{f"folder {name}": directory(name) for name in (CONFIG, WEIGHTS)},
}  # fmt: skip
TOKENIZERS = {
    "tokenizer of garbage": content(TOKENIZER_FILE, bytes(range(256)) * 10),
    "tokenizer empty": content(TOKENIZER_FILE, b""),
    "tokenizer nested": content(TOKENIZER_FILE, deep()),
    "tokenizer a pickle": content(TOKENIZER_FILE, PICKLE % b"CANARY"),
    "tokenizer without model": edit_tokenizer(lambda raw: raw.pop("model")),
    "tokenizer with a far id": edit_tokenizer(lambda raw: raw["model"]["vocab"].update(far=10**6)),
    "tokenizer without control tokens": edit_tokenizer(lambda raw: raw["added_tokens"].clear()),
    "tokenizer of another kind": edit_tokenizer(
        lambda raw: raw.update(
            model={"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
        )
    ),
    "tokenizer settings a list": content("tokenizer_config.json", b"[]"),
    "tokenizer settings nested": content("tokenizer_config.json", deep()),
    "template a number": together(
        lambda folder: (folder / "chat_template.jinja").unlink(),
        content("tokenizer_config.json", b'{"chat_template": 3}'),
    ),
}
HARMS = {**NUMBERS, **CONFIGS, **FILES, **TOKENIZERS}
# What is not looked at before a conversation is rendered.
TEMPLATES = {
    "template that counts for ever": b"{% for a in range(99999) %}{% for b in range(99999) %}x"
    b"{% endfor %}{% endfor %}",
    "template that grows": b"{{ 'a' * 10 ** 10 }}",
    "template that looks around": b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "template that pads": b"{{ '%999999999d' % 1 }}",
    "template nested": b"{{ " + b"(" * 100_000 + b")" * 100_000 + b" }}",
    "template that runs": b"{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "template that is none": b"{% for %}",
}


def test_the_folder_that_the_harm_is_done_to_is_honest(folder: Path) -> None:
    assert open_model(folder, CPU).model.config.n_layers == 2


def snapshot(place: Path) -> dict[str, tuple[int, bytes | None]]:
    """What lies below a place, without opening more than small files."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and path.stat().st_size < 1e6 else None,
        )
        for path in place.rglob("*")
    }


ALL = HARMS | {name: content("chat_template.jinja", text) for name, text in TEMPLATES.items()}


@pytest.mark.parametrize("kind", ALL)
def test_a_hostile_folder_ends_with_exit_code_4(
    folder: Path, kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ALL[kind](folder)
    monkeypatch.setenv("COLUMNS", "10000")
    before = snapshot(folder.parent)
    assert (
        run(["chat", "-m", str(folder), "-p", "hello 你好", "--max-tokens", "2", "--device", "cpu"])
        == 4
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert err[:-1].isprintable()
    assert len(err) < 1000
    assert snapshot(folder.parent) == before
    assert not (folder.parent / CANARY).exists()


def test_other_files_that_are_no_files_are_left_alone(folder: Path) -> None:
    os.mkfifo(folder / "manifest.json")
    os.mkfifo(folder / "vocab.json")
    (folder / "code.py").write_text("raise SystemExit(3)")
    config(auto_map={"AutoModelForCausalLM": "code.Model"})(folder)
    assert open_model(folder, CPU).model.config.n_layers == 2


_WATCHED = """
import json, os, resource, sys
import chatbench, torch
from chatbench.errors import IntegrityError
from chatbench.model.folder import open_model

SOURCE = os.path.dirname(chatbench.__file__)
good, folders = sys.argv[1], sys.argv[2:]
open_model(good, torch.device("cpu"))  # everything is imported now
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * os.sysconf("SC_PAGE_SIZE") + 700_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, room))
seen = []

def watch(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.exec",
                 "os.posix_spawn", "os.fork", "ctypes.dlopen"):
        seen.append(event)
    if event == "exec" and not arguments[0].co_filename.startswith((sys.prefix, sys.base_prefix,
                                                                    "<frozen", SOURCE)):
        seen.append(f"runs {arguments[0].co_filename}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE:
        seen.append(f"writes {arguments[0]}")

sys.addaudithook(watch)
answers = {}
for folder in folders:
    seen.clear()
    try:
        open_model(folder, torch.device("cpu"))
        answers[folder] = "opened"
    except IntegrityError:
        answers[folder] = "refused" if not seen else repr(seen)
    except BaseException as error:
        answers[folder] = repr(error)[:500]
print(json.dumps(answers))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks the system of Linux")
def test_hostile_folders_take_no_memory_and_run_nothing(good: Path, tmp_path: Path) -> None:
    folders = {}
    for number, (kind, harm) in enumerate(HARMS.items()):
        place = shutil.copytree(good, tmp_path / str(number) / "model")
        harm(place)
        folders[str(place)] = kind
    with new_folder(tmp_path / "sealed", "model") as sealed:  # its manifest is read as well
        shutil.copytree(good, sealed, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path / "sealed"), *folders],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = {folders[place]: answer for place, answer in json.loads(done.stdout).items()}
    assert answers == dict.fromkeys(HARMS, "refused")


def test_weights_of_another_model_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("chatbench.model.weights._read_tensor", refuse)
    config(intermediate_size=8)(folder)
    with pytest.raises(IntegrityError, match="shape"):
        open_model(folder, CPU)
