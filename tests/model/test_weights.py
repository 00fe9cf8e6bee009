"""Safetensors files: what the format's own library writes is read, and nothing that it refuses."""

from __future__ import annotations

import json
import os
import random
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from chatbench.errors import EnvironmentFault, IntegrityError
from chatbench.model import weights as module
from chatbench.model.reading import parse_object, read_bounded, read_object
from chatbench.model.weights import (
    LARGEST_HEADER,
    WEIGHTS,
    open_weights,
    read_file,
    write_weights,
)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def random_weights(
    rng: random.Random, dtypes: tuple[torch.dtype, ...] = DTYPES, most: int = 9
) -> dict[str, Tensor]:
    """Tensors of odd shapes, scalars and empty ones among them, names in two languages."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    found: dict[str, Tensor] = {}
    for number in range(rng.randrange(2, most)):
        shape = [rng.choice((0, 1, 2, 3, 7, 33)) for _ in range(rng.randrange(4))]
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        found[f"{rng.choice(('层', 'layer'))}.{number}.weight"] = values.to(rng.choice(dtypes))
    return found


def spell(header: dict[str, Any] | bytes, numbers: bytes = b"") -> bytes:
    """A file of this header; a dict is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and one[n].view(torch.uint8).tolist() == other[n].view(torch.uint8).tolist()
        if one[n].ndim
        else torch.equal(one[n], other[n])
        for n in one
    )


# ---- both ways with the library


def test_what_the_library_writes_is_read_bit_by_bit(rng: random.Random, tmp_path: Path) -> None:
    for _ in range(20):
        wanted = random_weights(rng)
        safetensors.torch.save_file(wanted, tmp_path / "w.safetensors", {"format": "pt"})
        assert same(read_file(tmp_path / "w.safetensors").read(), wanted)


def test_what_is_written_the_library_reads_bit_by_bit(rng: random.Random, tmp_path: Path) -> None:
    for _ in range(20):
        wanted = random_weights(rng)
        write_weights(tmp_path, wanted)
        assert same(safetensors.torch.load_file(tmp_path / WEIGHTS), wanted)
        with safetensors.safe_open(tmp_path / WEIGHTS, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reading_and_writing_convert_as_torch_does(
    rng: random.Random, tmp_path: Path, dtype: torch.dtype
) -> None:
    given = random_weights(rng)
    wanted = {name: weight.to(dtype) for name, weight in given.items()}
    write_weights(tmp_path, given)
    assert same(open_weights(tmp_path).read(dtype), wanted)
    write_weights(tmp_path, given, dtype=dtype)
    assert same(open_weights(tmp_path).read(), wanted)


def test_views_are_written_as_what_they_show(rng: random.Random, tmp_path: Path) -> None:
    table = torch.arange(60.0).reshape(6, 10)
    views = {"turned": table.t(), "part": table[1:5:2, 3:7], "again": table}
    write_weights(tmp_path, views)
    read = open_weights(tmp_path).read()
    assert all(torch.equal(read[name], views[name]) for name in views)


def test_other_numbers_have_entries_but_are_not_read_as_weights(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"w": torch.ones(3), "mask": torch.ones(4, dtype=torch.bool)}, tmp_path / WEIGHTS
    )
    stored = open_weights(tmp_path)
    assert set(stored) == {"w", "mask"}
    assert set(stored.read()) == {"w"}
    assert stored.skeleton()["mask"].dtype == torch.uint8
    assert stored.elements() == 7


def test_one_tensor_at_a_time_is_held(rng: random.Random, tmp_path: Path) -> None:
    write_weights(tmp_path, {f"w{n}": torch.ones(50) for n in range(5)})
    before: weakref.ref[Tensor] | None = None
    for _, weight in open_weights(tmp_path).each():
        assert before is None or before() is None
        before = weakref.ref(weight)
        del weight


def test_reading_in_small_pieces_gives_the_same(
    rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One system call gives two gigabytes at most."""
    wanted = random_weights(rng)
    write_weights(tmp_path, wanted)
    plain = module.open_regular

    class Slow:
        def __init__(self, path: Path) -> None:
            self.file = plain(path)

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def readinto(self, view: memoryview) -> int:
            return self.file.readinto(view[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    stored = open_weights(tmp_path)
    monkeypatch.setattr(module, "open_regular", Slow)
    assert same(stored.read(), wanted)


# ---- several files


def test_shards_hold_everything_once_and_the_index_says_where(
    rng: random.Random, tmp_path: Path
) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        wanted = random_weights(rng, most=20)
        most = rng.randrange(1, 3000)
        write_weights(folder, wanted, largest_shard=most)
        assert same(open_weights(folder).read(), wanted)
        if (folder / WEIGHTS).exists():
            assert len(list(folder.iterdir())) == 1
            continue
        index = json.loads((folder / f"{WEIGHTS}.index.json").read_text("utf-8"))
        assert index["metadata"]["total_size"] == sum(w.nbytes for w in wanted.values())
        shards = {p.name: safetensors.torch.load_file(p) for p in folder.glob("*.safetensors")}
        assert {n: file for file, held in shards.items() for n in held} == index["weight_map"]
        count = len(shards)
        assert set(shards) == {
            f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
        }
        for held in shards.values():
            assert len(held) == 1 or sum(w.nbytes for w in held.values()) <= most


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    write_weights(folder, {f"w{n}": torch.full((4,), float(n)) for n in range(3)}, largest_shard=20)
    assert len(list(folder.glob("*.safetensors"))) == 3
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text("utf-8"))
    changed = change(index)
    kept = changed if isinstance(changed, dict | list) else index
    path.write_text(json.dumps(kept), "utf-8")


FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda i: i["weight_map"].update(w0=SECOND), "w0"),
        (lambda i: i["weight_map"].update(w9=FIRST), "w9"),
        (lambda i: i["weight_map"].update(w0="gone.safetensors"), "gone.safetensors"),
        (lambda i: i.pop("weight_map"), "weight_map"),
        (lambda i: {**i, "weight_map": {}}, "weight_map"),
        (lambda i: {**i, "weight_map": [FIRST]}, "weight_map"),
        (lambda i: [i], "index.json"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    sharded: Path, change: Callable[[dict[str, Any]], Any], word: str
) -> None:
    edit_index(sharded, change)
    with pytest.raises(IntegrityError, match=word):
        open_weights(sharded)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..", "",
     ".safetensors", "x.bin", "C:x.safetensors", "a\0.safetensors", "层\n.safetensors",
     "w" * 300 + ".safetensors", 7, None, ["model.safetensors"]],
)  # fmt: skip
def test_a_shard_is_a_plain_name_of_the_folder(sharded: Path, name: Any) -> None:
    outside = {"w0": torch.zeros(4)}
    safetensors.torch.save_file(outside, sharded.parent / "x.safetensors")
    edit_index(sharded, lambda index: index["weight_map"].update(w0=name))
    with pytest.raises(IntegrityError):
        open_weights(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    held = safetensors.torch.load_file(sharded / SECOND)
    safetensors.torch.save_file({**held, "w0": torch.zeros(4)}, sharded / SECOND)
    with pytest.raises(IntegrityError, match="w0"):
        open_weights(sharded)


@pytest.mark.parametrize("name", [WEIGHTS, FIRST], ids=["one file", "shard"])
def test_links_stay_in_the_folder_or_lead_into_the_hubs_cache(
    sharded: Path, tmp_path: Path, name: str
) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    source = sharded if name == FIRST else tmp_path / "whole"
    if name == WEIGHTS:
        source.mkdir()
        write_weights(source, {"w": torch.ones(3)})
    for path in source.iterdir():
        path.rename(blobs / f"{path.name}-digest")
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}-digest")
    read = open_weights(snapshot).read()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in snapshot.iterdir():
        (elsewhere / path.name).symlink_to(path)
    with pytest.raises(IntegrityError, match="link that leads out"):
        open_weights(elsewhere)
    (elsewhere / name).unlink()
    (blobs / f"{name}-digest").rename(elsewhere / "inside.bin")
    (elsewhere / name).symlink_to("inside.bin")
    if name == WEIGHTS:
        assert same(open_weights(elsewhere).read(), read)


# ---- damage and lies


GOOD = spell({"w": entry()}, bytes(8))


def lies() -> dict[str, bytes]:
    deep = b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    twice = b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2)
    numbers = bytes(8)
    return {
        "no object": spell(b"[1]", numbers),
        "empty": b"",
        "length only": struct.pack("<Q", 10),
        "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
        "length -1": struct.pack("<q", -1) + b"{}",
        "header longer than the file": struct.pack("<Q", 50) + b"{}",
        "not JSON": spell(b"{nothing}", numbers),
        "not UTF-8": spell(b'{"\xff\xfe": 1}', numbers),
        "nested": spell(deep, numbers),
        "twice": spell(twice, numbers),
        "NaN": spell(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', numbers),
        "a number as entry": spell({"w": 3}, numbers),
        "an unknown key": spell({"w": {**entry(), "strides": [1]}}, numbers),
        "a missing key": spell({"w": {"dtype": "F32", "shape": [2]}}, numbers),
        "an unknown dtype": spell({"w": entry("F31")}, numbers),
        "a number as dtype": spell({"w": {**entry(), "dtype": 32}}, numbers),
        "a negative size": spell({"w": entry(shape=[-2])}, numbers),
        "a fraction as size": spell({"w": entry(shape=[2.0])}, numbers),
        "a text as size": spell({"w": entry(shape=["2"])}, numbers),
        "true as size": spell({"w": entry("F64", shape=[True])}, numbers),
        "sizes that overflow": spell({"w": entry(shape=[1 << 33, 1 << 33])}, numbers),
        "a zero hides a huge size": spell({"w": entry(shape=[0, 1 << 61, 8], offsets=[0, 0])}),
        "a thousand sizes": spell({"w": entry(shape=[1] * 1000 + [2])}, numbers),
        "shape a number": spell({"w": entry(shape=2)}, numbers),
        "more bytes than the shape": spell({"w": entry(shape=[1])}, numbers),
        "offsets turned round": spell({"w": entry(shape=[0], offsets=[8, 0])}, numbers),
        "three offsets": spell({"w": entry(offsets=[0, 8, 8])}, numbers),
        "beyond the file": spell({"w": entry(shape=[4], offsets=[0, 16])}, numbers),
        "far beyond the file": spell(
            {"w": entry(shape=[1 << 50], offsets=[0, 1 << 52])}, numbers
        ),
        "a gap before": spell({"w": entry(offsets=[4, 12])}, bytes(12)),
        "a gap between": spell(
            {"v": entry(), "w": entry(offsets=[12, 20])}, bytes(20)
        ),
        "an overlap": spell({"v": entry(), "w": entry(offsets=[4, 12])}, bytes(12)),
        "the same place twice": spell({"v": entry(), "w": entry()}, numbers),
        "a rest": spell({"w": entry()}, bytes(9)),
        "metadata of numbers": spell({"__metadata__": {"a": 1}, "w": entry()}, numbers),
        "metadata a text": spell({"__metadata__": "pt", "w": entry()}, numbers),
        "a header of many megabytes": spell(b"{" + b" " * LARGEST_HEADER + b"}"),
    }  # fmt: skip


def test_the_file_that_the_lies_are_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(GOOD)
    assert open_weights(tmp_path).read()["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", lies())
def test_a_lying_header_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(lies()[kind])
    with pytest.raises(IntegrityError) as caught:
        open_weights(tmp_path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_whatever_the_library_refuses_is_refused_here(rng: random.Random, tmp_path: Path) -> None:
    """Bytes of honest files changed at random: what both read is the same."""
    path, read, refused = tmp_path / WEIGHTS, 0, 0
    for _ in range(400):
        data = bytearray(safetensors.torch.save(random_weights(rng, most=4)))
        for _ in range(rng.randrange(1, 3)):
            # Mostly in the header, where structure is.
            at = rng.randrange(min(len(data), 220))
            data[at] = rng.choice(b'0123456789{}[]",:FB ' + bytes([rng.randrange(256)]))
        path.write_bytes(data)
        try:
            theirs = safetensors.torch.load(bytes(data))
        except Exception:
            theirs = None
        try:
            ours = open_weights(tmp_path).read()
        except IntegrityError:
            refused += 1
            continue
        assert theirs is not None
        assert all(same({n: w}, {n: theirs[n]}) for n, w in ours.items())
        read += 1
    assert read
    assert refused


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, {"w": torch.ones(1000)})
    stored = open_weights(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 2000)
    with pytest.raises(IntegrityError, match="shorter"):
        stored.read()


def test_more_weights_than_memory_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    """A file with holes: large by its length, small on the disk."""
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    header = spell({"w": entry("F16", [count], [0, 2 * count])})
    path = tmp_path / WEIGHTS
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + 2 * count)
    except OSError:
        pytest.skip("this file system knows no such files")
    with pytest.raises(EnvironmentFault, match="this machine has"):
        open_weights(tmp_path).read(torch.float32)


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"PK\x03\x04" + bytes(40), "pickle"),
        (b"\x80\x02}q\x00." + bytes(40), "pickle"),
        (b"\x80\x05\x95" + bytes(40), "pickle"),
        (b"(dp0\n." + bytes(40), "pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "TensorFlow"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_other_forms_under_the_name_of_safetensors_are_recognised(
    tmp_path: Path, start: bytes, word: str
) -> None:
    (tmp_path / WEIGHTS).write_bytes(start)
    with pytest.raises(IntegrityError, match=word):
        open_weights(tmp_path)


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """640 bytes: the length begins with the two bytes that begin a pickle."""
    text = json.dumps({"w": entry()}).encode()
    (tmp_path / WEIGHTS).write_bytes(spell(text + b" " * (640 - len(text)), bytes(8)))
    assert (tmp_path / WEIGHTS).read_bytes()[:2] == b"\x80\x02"
    assert set(open_weights(tmp_path)) == {"w"}


# ---- plain files


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "设置.json"
    path.write_bytes(b'{"a": 1}')
    assert read_bounded(path, 8) == b'{"a": 1}'
    assert read_object(path, 8) == {"a": 1}
    with pytest.raises(IntegrityError, match="8 bytes"):
        read_bounded(path, 7)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "gone", 7)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", ".", "设置.json/x"):
        with pytest.raises(IntegrityError, match="not a"):
            read_bounded(tmp_path / name, 7)
    with pytest.raises(IntegrityError, match="not a regular file"):
        read_bounded(Path("/dev/zero"), 7)


@pytest.mark.parametrize(
    "text",
    ["[1]", "3", '"a"', "null", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}',
     '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "{" * 100_000, '{"a":' * 100_000,
     '{"a": ' + "9" * 5000 + "}", "", "{} {}"],
    ids=range(14),
)  # fmt: skip
def test_what_is_no_plain_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_object(text.encode())


def test_objects_are_parsed_as_json_does(rng: random.Random) -> None:
    value = {"名": [1, -2.5, "文", None, True, {"a": {}}], "b": rng.random(), "c": 10**30}
    assert parse_object(json.dumps(value).encode()) == value


@pytest.mark.parametrize("size", [0x28, 0x63, 0x0280, 0x0580, 0x5D])
@pytest.mark.parametrize("kept", [3, 4, 8, 20])
def test_a_header_that_begins_like_a_pickle_is_no_pickle(
    size: int, kept: int, tmp_path: Path
) -> None:
    """Cut short, it is damaged, and nobody should be told to convert it."""
    whole = size.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(IntegrityError, match="damaged"):
        read_file(tmp_path / WEIGHTS)
