"""A GGUF file holds the model: every number, every key, every entry of the vocabulary."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.families import ARCHITECTURE, FAMILIES, make_family

import chatbench.export.run as run
from chatbench.errors import EnvironmentFault, IntegrityError, UsageError
from chatbench.export.gguf import plan, write_gguf
from chatbench.export.gguf_metadata import choose_architecture, describe_model
from chatbench.export.gguf_numbers import allowed_error, choose_format, convert
from chatbench.export.run import export
from chatbench.export.verify import verify_gguf
from chatbench.model.config import ModelConfig, RopeScaling
from chatbench.model.folder import OpenedModel, stored_weights
from chatbench.settings import ExportSettings

gguf = pytest.importorskip("gguf")
BLOCK = 32


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models by name, made once."""
    made: dict[str, OpenedModel] = {}
    rng = random.Random()

    def get(name: str) -> OpenedModel:
        if name not in made:
            made[name] = make_family(name, tmp_path_factory.mktemp("made") / name, rng)
        return made[name]

    return get


@pytest.fixture
def opened(family: Any) -> OpenedModel:
    model: OpenedModel = family("qwen3")
    return model


def save(opened: OpenedModel, out: Path, **settings: Any) -> Path:
    return export(ExportSettings(model=str(opened.folder), out=str(out), **settings))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys, and tensors as (type name, numbers in torch's shape)."""
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: (
            t.tensor_type.name,
            gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(t.shape[::-1])),
        )
        for t in reader.tensors
    }
    return keys, tensors


# ---- numbers


def expected_tensors(opened: OpenedModel, architecture: str) -> dict[str, np.ndarray]:
    """The slow twin: one element after the other, and names spelled out."""
    config, found = opened.model.config, {}
    weights = {n: w.numpy() for n, w in stored_weights(opened.model).items()}
    for name, weight in weights.items():
        module, kind = name.rsplit(".", 1)
        parts = module.split(".")
        if parts[:2] != ["model", "layers"]:
            renamed = {"embed_tokens": "token_embd", "embed_positions": "position_embd",
                       "norm": "output_norm", "lm_head": "output"}[parts[-1]]  # fmt: skip
            found[f"{renamed}.{kind}"] = weight
            continue
        part = {
            "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
            "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
            "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
            "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        }[parts[-1]]  # fmt: skip
        if architecture == "llama" and part in ("attn_q", "attn_k"):
            turned = np.empty_like(weight)
            half = config.head_dim // 2
            for row in range(len(weight)):
                head, at = divmod(row, config.head_dim)
                turned[head * config.head_dim + 2 * (at % half) + at // half] = weight[row]
            weight = turned
        found[f"blk.{parts[2]}.{part}.{kind}"] = weight
    if architecture == "gpt2":
        for layer in range(config.n_layers):
            for kind in ("weight", "bias"):
                qkv = [found.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
                found[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(qkv)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_is_at_its_place(family: Any, tmp_path: Path, name: str) -> None:
    opened = family(name)
    keys, tensors = read(save(opened, tmp_path / "m.gguf", quantize="f32", verify=True))
    assert keys["general.architecture"] == ARCHITECTURE[name]
    wanted = expected_tensors(opened, ARCHITECTURE[name])
    frequencies = tensors.pop("rope_freqs.weight", None)
    assert (frequencies is not None) == (name == "llama3")
    assert tensors.keys() == wanted.keys()
    for tensor, (kind, numbers) in tensors.items():
        assert kind == "F32"
        assert np.array_equal(numbers, wanted[tensor]), tensor


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "llama2"])
@pytest.mark.parametrize(
    ("quantize", "matrices", "vocabulary"),
    [("f16", "F16", "F16"), ("q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q4_0", "Q8_0")],
)
def test_every_tensor_has_its_format(
    family: Any, tmp_path: Path, name: str, quantize: str, matrices: str, vocabulary: str
) -> None:
    opened = family(name)
    path = save(opened, tmp_path / "m.gguf", quantize=quantize, verify=True)
    keys, tensors = read(path)
    assert keys["general.file_type"] == {"f16": 1, "q8_0": 7, "q4_0": 2}[quantize]
    for tensor, (kind, numbers) in tensors.items():
        if numbers.ndim == 1 or tensor == "position_embd.weight":
            assert kind == "F32", tensor
        elif tensor in ("token_embd.weight", "output.weight"):
            assert kind == vocabulary, tensor
        else:
            assert kind == matrices, tensor


def decode_block(raw: bytes, kind: str) -> list[float]:
    """32 numbers of a block by ggml's description, in float64."""
    (scale,) = struct.unpack("<e", raw[:2])
    if kind == "q8_0":
        return [scale * q for q in struct.unpack("<32b", raw[2:])]
    low = [scale * ((byte & 15) - 8) for byte in raw[2:]]
    return low + [scale * ((byte >> 4) - 8) for byte in raw[2:]]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_are_rounded_to_the_nearest(rng: random.Random, kind: Any) -> None:
    rows, columns = rng.randrange(1, 6), BLOCK * rng.randrange(1, 5)
    spread = [10.0 ** rng.choice((-39, rng.uniform(-9, 4))) for _ in range(rows)]
    weight = np.float32([[rng.gauss(0, s) for _ in range(columns)] for s in spread])
    weight[0, :BLOCK] = 0.0
    raw = convert("blk.0.w", weight, kind).tobytes()
    size = 34 if kind == "q8_0" else 18
    assert len(raw) == rows * columns // BLOCK * size
    allowed = allowed_error(weight, kind)
    for number, block in enumerate(weight.reshape(-1, BLOCK).astype(np.float64)):
        stored = decode_block(raw[number * size : (number + 1) * size], kind)
        (scale,) = struct.unpack("<e", raw[number * size : number * size + 2])
        steps = range(-128, 128) if kind == "q8_0" else range(-8, 8)
        for at, (exact, got) in enumerate(zip(block, stored, strict=True)):
            assert abs(exact - got) <= allowed[number * BLOCK + at]
            if abs(scale) >= 2.0**-14:  # below, f16 has fewer digits
                nearest = min(abs(exact - scale * q) for q in steps)
                # The step was chosen before its scale was rounded to f16.
                assert abs(exact - got) <= nearest + abs(scale) * len(steps) * 2.0**-12


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_long_tensors_are_converted_in_pieces_alike(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    generator = np.random.default_rng(rng.randrange(1 << 32))
    weight = generator.standard_normal((rng.randrange(3, 40), 64), np.float32)
    whole = convert("w", weight, kind)
    monkeypatch.setattr("chatbench.export.gguf_numbers._PIECE", 32 * rng.randrange(1, 5))
    assert np.array_equal(convert("w", weight, kind), whole)


@pytest.mark.parametrize(
    ("kind", "number", "hint"),
    [
        ("f16", 70_000.0, "--quantize f32"),
        ("q8_0", 9e6, "--quantize f32"),
        ("q4_0", -6e5, "--quantize f32"),
        ("f32", math.nan, "diverged"),
        ("f16", math.inf, "diverged"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kind: Any, number: float, hint: str) -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 5] = number
    with pytest.raises(IntegrityError, match=r"blk\.0\.w holds") as caught:
        convert("blk.0.w", weight, kind)
    assert hint in str(caught.value)


def test_rows_that_are_no_whole_blocks_stay_f16(
    tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = make_family("qwen3", tmp_path / "odd", rng, hidden_size=40, ffn_size=64)
    _, tensors = read(save(opened, tmp_path / "m.gguf", quantize="q8_0", verify=True))
    for name, (kind, numbers) in tensors.items():
        if numbers.ndim == 2:
            assert kind == ("F16" if numbers.shape[1] % BLOCK else "Q8_0"), name
    assert "stay f16" in capsys.readouterr().err
    assert choose_format("blk.0.x.weight", (4, 40), "q4_0") == "f16"


# ---- what --verify finds


def damage(path: Path, content: Any, tensor: str, rng: random.Random) -> None:
    reader = gguf.GGUFReader(path)
    found = next(t for t in reader.tensors if t.name == tensor)
    start, size = int(found.data_offset), int(found.n_bytes)
    del reader
    raw = bytearray(path.read_bytes())
    # The sign bit of a scale or of a number.
    width = {"F32": 4, "F16": 2, "Q8_0": 34, "Q4_0": 18}[found.tensor_type.name]
    at = start + width * rng.randrange(size // width)
    raw[at + (3 if width == 4 else 1)] ^= 0x80
    path.write_bytes(raw)


@pytest.mark.parametrize("quantize", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "token_embd.weight"])
def test_verify_finds_one_wrong_number(
    opened: OpenedModel, tmp_path: Path, rng: random.Random, quantize: Any, tensor: str
) -> None:
    content = plan(opened, stored_weights(opened.model), "bot", quantize)
    path = tmp_path / "m.gguf"
    write_gguf(path, content)
    verify_gguf(path, content)
    damage(path, content, tensor, rng)
    with pytest.raises(IntegrityError, match=tensor):
        verify_gguf(path, content)


@pytest.mark.parametrize(
    "key",
    [
        "qwen3.block_count", "qwen3.rope.freq_base", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.chat_template",
        "tokenizer.ggml.add_bos_token", "tokenizer.ggml.eos_token_id",
    ],
)  # fmt: skip
def test_verify_finds_a_wrong_key(opened: OpenedModel, tmp_path: Path, key: str) -> None:
    content = plan(opened, stored_weights(opened.model), "bot", "f16")
    path = tmp_path / "m.gguf"
    value: Any = content.metadata[key]
    if isinstance(value, list):
        changed: Any = [*value[:-1], value[-1] + (1 if isinstance(value[-1], int) else "x")]
    else:
        changed = not value if isinstance(value, bool) else value + type(value)(1)
    write_gguf(path, content._replace(metadata={**content.metadata, key: changed}))
    with pytest.raises(IntegrityError, match=key):
        verify_gguf(path, content)


def test_verify_finds_a_missing_tensor_and_a_short_file(
    opened: OpenedModel, tmp_path: Path
) -> None:
    content = plan(opened, stored_weights(opened.model), "bot", "f16")
    path = tmp_path / "m.gguf"
    write_gguf(path, content._replace(entries=content.entries[:-1]))
    with pytest.raises(IntegrityError, match="tensors of the model"):
        verify_gguf(path, content)
    write_gguf(path, content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IntegrityError, match="cannot be read"):
        verify_gguf(path, content)


def test_a_file_that_fails_to_verify_never_appears(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(path: Path, content: Any) -> None:
        write_gguf(path, content._replace(entries=content.entries[1:]))

    monkeypatch.setattr(run, "write_gguf", write_another)
    with pytest.raises(IntegrityError, match="does not hold what was exported"):
        save(opened, tmp_path / "out" / "m.gguf", verify=True)
    assert not list((tmp_path / "out").iterdir())


# ---- the shape of the model


def test_the_shape_is_written(opened: OpenedModel) -> None:
    config = opened.model.config
    metadata = describe_model(config, "bot", "f16").metadata
    wanted = {
        "block_count": config.n_layers, "context_length": config.context,
        "embedding_length": config.hidden_size, "feed_forward_length": config.ffn_size,
        "attention.head_count": config.n_heads, "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta, "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    assert {k: v for k, v in metadata.items() if k.startswith("qwen3.")} == {
        f"qwen3.{key}": value for key, value in wanted.items()
    }
    assert metadata["general.name"] == "bot"
    # llama.cpp changes flags of tokens by the model's name.
    assert "general.name" not in describe_model(config, "my-Phi3-bot", "f16").metadata


def test_slowdowns_of_llama3_follow_the_published_formula(rng: random.Random) -> None:
    rope = RopeScaling("llama3", rng.uniform(2, 32), rng.choice((64, 8192)), 1.0, 4.0)
    config = ModelConfig(
        64, 1, 64, 2, 2, 32, 64, 4096, qk_norm=False, rope=rope, model_type="llama",
        rope_theta=rng.choice((10_000.0, 500_000.0)),
    )  # fmt: skip
    (tensor,) = describe_model(config, "x", "f16").tensors
    assert (tensor.name, tensor.shape) == ("rope_freqs.weight", (16,))
    assert rope.original_context is not None
    for pair, got in enumerate(tensor.load().tolist()):
        wave = 2 * math.pi * config.rope_theta ** (2 * pair / 32)
        smooth = (rope.original_context / wave - 1.0) / 3.0
        if wave < rope.original_context / 4.0:
            wanted = 1.0
        elif wave > rope.original_context:
            wanted = rope.factor
        else:
            wanted = 1 / ((1 - smooth) / rope.factor + smooth)
        assert got == pytest.approx(wanted, rel=1e-6)


def test_stretched_positions_have_their_keys(opened: OpenedModel) -> None:
    def keys(rope: RopeScaling) -> dict[str, Any]:
        metadata = describe_model(opened.model.config._replace(rope=rope), "x", "f16").metadata
        prefix = "qwen3.rope.scaling."
        return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}

    assert keys(RopeScaling("linear", 4.0)) == {"type": "linear", "factor": 4.0}
    assert keys(RopeScaling("yarn", 4.0, 64, attention_factor=1.5)) == {
        "type": "yarn", "factor": 4.0, "original_context_length": 64,
        "attn_factor": pytest.approx(1.5 / (0.1 * math.log(4.0) + 1)),
        "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    }  # fmt: skip
    dynamic = opened.model.config._replace(rope=RopeScaling("dynamic", 2.0))
    assert "beyond 512" in describe_model(dynamic, "x", "f16").notices[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "gelu"}, "no activation gelu"),
        ({"norm": "layer"}, "no norm layer"),
        ({"gated": False}, "no gated False"),
        ({"qkv_bias": True}, "no qkv_bias True"),
        ({"rope": RopeScaling("llama3", 8.0, 64, 1.0, 4.0)}, "no llama3 rope"),
        ({"rope": RopeScaling("yarn", 8.0, 64, truncate=False)}, "truncate false"),
        ({"positions": "learned"}, "gpt2 has no "),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    opened: OpenedModel, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(IntegrityError, match=said):
        describe_model(opened.model.config._replace(**changes), "x", "f16")


def test_the_architecture_follows_from_what_is_computed() -> None:
    config = ModelConfig(64, 1, 64, 2, 2, 32, 64, 128, model_type="qwen2", qk_norm=False)
    assert choose_architecture(config) == "llama"
    assert choose_architecture(config._replace(qkv_bias=True)) == "qwen2"
    assert choose_architecture(config._replace(qkv_bias=True, out_bias=True)) == "llama"
    assert choose_architecture(config._replace(model_type="mistral", qk_norm=True)) == "qwen3"


# ---- the verb


def test_the_verb_prints_a_table_and_the_path(
    opened: OpenedModel, tmp_path: Path, cli: Any
) -> None:
    out = tmp_path / "机器人.gguf"
    done = cli("export", "-m", opened.folder, "-o", out, "--quantize", "q8_0", "--verify")
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    for word in ("q8_0", "f32", "tensors", "bytes", "qwen3", "pre-tokenizer qwen2", "verified"):
        assert word in done.stderr
    keys, _ = read(out)
    assert keys["general.name"] == "机器人"


def test_only_gguf_files_are_replaced(opened: OpenedModel, tmp_path: Path) -> None:
    out = save(opened, tmp_path / "m.gguf", quantize="f32")
    size = out.stat().st_size
    with pytest.raises(UsageError, match="exists already"):
        save(opened, out)
    save(opened, out, overwrite=True)
    assert out.stat().st_size < size
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for taken in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(UsageError, match="not a GGUF file"):
            save(opened, taken, overwrite=True)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_without_the_package_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbench.export.gguf.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "chatbench\[gguf\]"'):
        export(ExportSettings(model=str(tmp_path / "nowhere"), out=str(tmp_path / "m.gguf")))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, content: Any) -> None:
        path.write_bytes(b"GGUF")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_gguf", fill)
    with pytest.raises(EnvironmentFault, match="No space left"):
        save(opened, tmp_path / "out" / "m.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_the_template_asked_for_goes_into_the_file(opened: OpenedModel, tmp_path: Path) -> None:
    own = (opened.folder / "chat_template.jinja").read_text(encoding="utf-8")
    keys, _ = read(save(opened, tmp_path / "own.gguf"))
    assert keys["tokenizer.chat_template"] == own
    jinja = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(jinja, encoding="utf-8")
    path = save(opened, tmp_path / "mine.gguf", template=str(tmp_path / "mine.jinja"))
    assert read(path)[0]["tokenizer.chat_template"] == jinja


def test_a_model_without_template_has_none_in_the_file(family: Any, tmp_path: Path) -> None:
    assert "tokenizer.chat_template" not in read(save(family("gpt2"), tmp_path / "m.gguf"))[0]
