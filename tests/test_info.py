"""info names what a folder is without torch, and what an installation has."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from chatbench import __version__
from chatbench.errors import IntegrityError, UsageError
from chatbench.info import count_parameters, info, installation, optional_packages
from chatbench.storage import new_folder

CONFIG = {
    "model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2,
    "vocab_size": 4096, "max_position_embeddings": 512, "chatbench": {"base": "runs/小店"},
}  # fmt: skip


def fill(folder: Path, config: Any = CONFIG) -> int:
    """A model folder with two weights; returns their number of values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return 22


def told(path: Path | None, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    info(path, as_json=True)
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    info(path, as_json=False)
    plain = capsys.readouterr().out
    for name, value in found.items():
        if value is not None:
            assert any(line.startswith(name) for line in plain.splitlines()), name
    return found


def test_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = fill(tmp_path / "model")
    found = told(tmp_path / "model", capsys)
    assert found["kind"] == "model"
    assert found["model type"] == "qwen3"
    assert (found["layers"], found["width"], found["vocabulary"]) == (4, 128, 4096)
    assert (found["context"], found["parameters"]) == (512, parameters)
    assert found["base"] == "runs/小店"


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("")
    with new_folder(tmp_path / "model", "model", {"step": 40}) as staging:
        fill(staging)
    found = told(tmp_path, capsys)
    assert (found["kind"], found["state"], found["step"]) == ("run", "finished", 40)
    assert found["parameters"] == 22


def test_a_run_in_progress_tells_of_its_newest_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("")
    found = told(tmp_path, capsys)
    assert (found["kind"], found["checkpoints"]) == ("run", 0)
    for step in (10, 20):
        place = tmp_path / "checkpoints" / f"step-{step:08d}"
        with new_folder(place, "checkpoint", {"step": step}) as staging:
            fill(staging / "model")
    found = told(tmp_path, capsys)
    assert "--resume" in found["state"]
    assert (found["checkpoints"], found["step"], found["layers"]) == (2, 20, 4)
    found = told(tmp_path / "checkpoints" / "step-00000010", capsys)
    assert (found["kind"], found["step"]) == ("checkpoint", 10)


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_that_trains_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended: bool
) -> None:
    run = tmp_path / "客服"
    run.mkdir()
    (run / "config.toml").write_text("")
    adapter = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "小店/model"}
    folder = run if ended else run / "checkpoints" / "step-00000003"
    inner = folder / "model"
    inner.mkdir(parents=True)
    (inner / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    save_file({"a": np.zeros((8, 3), np.float32)}, inner / "adapter_model.safetensors")
    found = told(run, capsys)
    assert found["state"].startswith("finished" if ended else "not finished")
    assert (found["rank"], found["base"], found["parameters"]) == (8, "小店/model", 24)


def test_another_folder_of_ours_and_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_folder(tmp_path / "screen", "screen", {"threshold": 0.9, "deep": {}}) as staging:
        (staging / "a").write_bytes(b"12345")
    found = told(tmp_path / "screen", capsys)
    assert found == {"kind": "screen", "folder": str(tmp_path / "screen"), "files": 1, "bytes": 5,
                     "threshold": 0.9}  # fmt: skip
    with new_folder(tmp_path / "corpus", "corpus", {"fingerprint": "ab"}):
        pass
    info(tmp_path / "corpus", as_json=False)
    assert capsys.readouterr().out.startswith("corpus corpus: 0 documents")


def test_what_is_nothing_of_ours_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of chatbench"):
        info(tmp_path, as_json=False)
    with pytest.raises(UsageError, match="does not exist"):
        info(tmp_path / "absent", as_json=False)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        info(tmp_path / "file", as_json=False)


def test_a_gguf_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "bot.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"bot\.gguf is a GGUF file"):
        info(tmp_path / "bot.gguf", as_json=False)


def test_a_name_of_the_hub_is_told_from_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "model")
    fetched = {"shop/tea@v1": tmp_path / "model"}
    monkeypatch.setattr("chatbench.info.cached", fetched.get)
    info("hf://shop/tea@v1", as_json=True)
    assert json.loads(capsys.readouterr().out)["parameters"] == 22
    with pytest.raises(UsageError, match="hf://shop/ink was not fetched yet"):
        info("hf://shop/ink", as_json=False)


def test_the_kernels_are_told_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    info(None, as_json=True, kernels=True)
    rows = json.loads(capsys.readouterr().out)
    assert {"phase", "shape", "backend", "reason"} == rows[0].keys()
    assert any(row["phase"] == "training" for row in rows)
    info(None, as_json=False, kernels=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attention on ")
    assert len(lines) == len(rows) + 1


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "\udcff", "[" * 5000], ids=ascii)
def test_a_damaged_configuration_is_an_integrity_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(IntegrityError, match="not a readable configuration"):
        info(tmp_path, as_json=False)


def test_a_strange_configuration_says_what_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "\\u001b[2J\\nx", "chatbench": 7}')
    info(tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert "␛[2J x" in out
    assert "\x1b" not in out


def test_parameters_are_counted_from_the_header(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "w.safetensors"
    arrays = {
        f"w{n}": np.zeros([rng.randrange(1, 5) for _ in range(rng.randrange(4))], np.float32)
        for n in range(6)
    }
    save_file(arrays, path)
    assert count_parameters(path) == sum(array.size for array in arrays.values())
    assert count_parameters(tmp_path / "absent") is None


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{",
             b'\x09\0\0\0\0\0\0\0{"a": {}}'],
)  # fmt: skip
def test_damaged_weights_are_an_integrity_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        count_parameters(tmp_path / "w.safetensors")


def test_the_installation_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path / "家"))
    found = told(None, capsys)
    assert found["chatbench"] == __version__
    assert found["torch"] == metadata.version("torch")
    assert found["cores"] >= 1
    assert found["home"] == str(tmp_path / "家")
    monkeypatch.delenv("CHATBENCH_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert installation()["home"] == str(tmp_path / "chatbench")


def test_extras_are_what_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["rich>=14", 'pyarrow>=17; extra == "data"', "zstd>=1 ; extra == 'data'",
                'pytest>=8; extra == "dev"', 'no-such-package-xyz; extra == "odd"']  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda _: declared)
    assert optional_packages() == {"data": ["pyarrow", "zstd"], "odd": ["no-such-package-xyz"]}
    assert installation()["extra odd"] == {"no-such-package-xyz": "missing"}


def test_a_program_that_is_not_installed_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", absent)
    assert optional_packages() == {}


def test_info_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom chatbench.info import info\ninfo(None, as_json=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
