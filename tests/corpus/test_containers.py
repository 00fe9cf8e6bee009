"""Whatever a file is packed in, its content comes out whole, or its damage is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import socket
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbench.corpus.document import Failure
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.containers import (
    DamagedInput,
    Input,
    find_inputs,
    open_blobs,
    written,
)
from chatbench.errors import DataError, UsageError

OPTIONS = ReadOptions()
TEXT = "小店早上九点开门。\nThe shop opens at nine.\n".encode()


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


def xz(data: bytes) -> bytes:
    return lzma.compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": xz,
    "zstd": zstd,
}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def placed(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def drained(blob: Blob) -> tuple[bytes, DamagedInput | None]:
    """What comes before the damage, and the damage."""
    pieces = []
    try:
        while piece := blob.handle.read1(1 << 16):
            pieces.append(piece)
    except DamagedInput as damage:
        return b"".join(pieces), damage
    return b"".join(pieces), None


def measured(blob: Blob) -> tuple[int, DamagedInput | None]:
    """How many bytes come before the damage, none of them kept."""
    size = 0
    try:
        while piece := blob.handle.read1(1 << 16):
            size += len(piece)
    except DamagedInput as damage:
        return size, damage
    return size, None


def contents(path: Path, options: ReadOptions = OPTIONS) -> dict[str, Any]:
    """name → bytes for whole blobs, the reason for damaged ones and failures."""
    found: dict[str, Any] = {}
    for blob in open_blobs(path, path.name, options):
        if isinstance(blob, Failure):
            found[blob.source] = blob.reason
        else:
            data, damage = drained(blob)
            found[blob.name] = data if damage is None else damage.reason
    return found


# ---- one stream


def test_a_plain_file_is_one_blob_with_its_path(tmp_path: Path) -> None:
    path = placed(tmp_path / "a.txt", TEXT)
    (blob,) = [
        (b.name, b.path, b.handle.peek(3)[:3], b.handle.read(), b.handle.seekable())
        for b in open_blobs(path, "茶.txt", OPTIONS)
        if isinstance(b, Blob)
    ]
    assert blob == ("茶.txt", path, TEXT[:3], TEXT, True)


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("suffix", ["", ".txt", ".gz"])
def test_a_compressed_file_is_known_by_its_bytes(tmp_path: Path, kind: str, suffix: str) -> None:
    pack = PACKERS[kind]
    path = placed(tmp_path / f"a.jsonl{suffix}", pack(TEXT) + pack(b"") + pack(TEXT))
    (blob,) = open_blobs(path, path.name, OPTIONS)
    assert isinstance(blob, Blob)
    assert (blob.name, blob.path) == (path.name, None)
    assert contents(path) == {path.name: TEXT * 2}


@pytest.mark.parametrize("kind", PACKERS)
def test_every_way_of_reading_gives_the_same(tmp_path: Path, kind: str, rng: random.Random) -> None:
    whole = b"".join(rng.randbytes(rng.randrange(40)).hex().encode() + b"\n" for _ in range(20_000))
    cut = rng.randrange(len(whole))
    path = placed(tmp_path / "f", PACKERS[kind](whole[:cut]) + PACKERS[kind](whole[cut:]))
    for read in (
        lambda h: h.read(),
        lambda h: b"".join(h),
        lambda h: b"".join(iter(lambda: h.read(rng.randrange(1, 99_999)), b"")),
        lambda h: b"".join(iter(lambda: h.peek(5)[:1] and h.read1(rng.randrange(1, 9999)), b"")),
    ):
        (got,) = [read(b.handle) for b in open_blobs(path, "f", OPTIONS) if isinstance(b, Blob)]
        assert got == whole


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_stream_gives_a_prefix_and_its_damage(
    tmp_path: Path, kind: str, rng: random.Random
) -> None:
    whole = rng.randbytes(300_000).hex().encode()
    packed = PACKERS[kind](whole)
    for cut in (len(packed) - 1, *rng.sample(range(12, len(packed)), 20)):
        path = placed(tmp_path / "f", packed[:cut])
        (record,) = [
            (b, b"") if isinstance(b, Failure) else drained(b)[::-1]
            for b in open_blobs(path, "f", OPTIONS)
        ]
        assert record[0] is not None
        assert record[0].reason == f"damaged {kind}"
        assert whole.startswith(record[1])
        if kind in ("gzip", "xz") and cut > len(packed) // 2 + 70_000:
            assert len(record[1]) > len(whole) // 4


@pytest.mark.parametrize("kind", PACKERS)
def test_damage_stays_damage_and_foreign_bytes_at_the_end_are_damage(
    tmp_path: Path, kind: str
) -> None:
    path = placed(tmp_path / "f", PACKERS[kind](TEXT) + b"something else")
    for blob in open_blobs(path, "f", OPTIONS):
        assert isinstance(blob, Blob)
        data, damage = drained(blob)
        assert data == TEXT
        assert damage is not None
        with pytest.raises(DamagedInput, match=f"damaged {kind}: other bytes"):
            blob.handle.read(1)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_flipped_bit_is_noticed_or_harmless(
    tmp_path: Path, kind: str, rng: random.Random
) -> None:
    whole = rng.randbytes(400).hex().encode()
    packed = PACKERS[kind](whole)
    for bit in rng.sample(range(8 * 10, 8 * len(packed)), 150):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        found = contents(placed(tmp_path / "f", bytes(damaged)))
        assert found["f"] in (whole, f"damaged {kind}", "compression bomb")


def test_padding_between_gzip_members_and_skippable_zstd_frames_are_nothing(
    tmp_path: Path,
) -> None:
    pack = PACKERS["gzip"]
    path = placed(tmp_path / "a", pack(TEXT) + bytes(70_000) + pack(TEXT) + bytes(3))
    assert contents(path) == {"a": TEXT * 2}
    skipped = b"\x53\x2a\x4d\x18\x03\0\0\0abc"
    path = placed(tmp_path / "b", skipped + zstd(TEXT) + skipped + zstd(TEXT))
    assert contents(path) == {"b": TEXT * 2}


@pytest.mark.parametrize("data", [b"\x1f\x8b", b"\x1f\x8bnothing of the kind"])
def test_two_magic_bytes_are_gzip_but_in_token_files(tmp_path: Path, data: bytes) -> None:
    assert contents(placed(tmp_path / "a.txt", data)) == {"a.txt": "damaged gzip"}
    assert contents(placed(tmp_path / "a.bin", data)) == {"a.bin": data}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_bomb_ends_with_flat_memory(tmp_path: Path, kind: str) -> None:
    pack = PACKERS[kind]
    path = placed(tmp_path / "f", pack(bytes(100 << 20)))
    tracemalloc.start()
    for blob in open_blobs(path, "f", ReadOptions(max_expansion=2)):
        assert isinstance(blob, Blob)
        read, damage = measured(blob)
        assert damage is not None
        assert damage.reason == "compression bomb"
        assert "max_expansion" in damage.detail
        assert 63 << 20 < read <= 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20
    if kind != "bzip2":
        return
    # Growth that the settings allow is none.
    small = placed(tmp_path / "g", PACKERS["gzip"](bytes(70 << 20)))
    for blob in open_blobs(small, "g", ReadOptions(max_expansion=1500)):
        assert isinstance(blob, Blob)
        assert measured(blob) == (70 << 20, None)


def test_zstd_without_its_package_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(tmp_path / "a.jsonl.zst", zstd(TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError, match=r'needs zstandard; pip install "chatbench\[data\]"'):
        list(open_blobs(path, "a", OPTIONS))
    with pytest.raises(UsageError, match="needs zstandard"):
        find_inputs([str(path)], None)


# ---- archives


@pytest.mark.parametrize("pack", [zipped, tarred, lambda m: gzip.compress(tarred(m)),
                                  lambda m: zstd(tarred(m)), lambda m: xz(zipped(m)),
                                  lambda m: tarred(m, tarfile.USTAR_FORMAT),
                                  lambda m: tarred(m, tarfile.GNU_FORMAT),
                                  lambda m: zipped(m, zipfile.ZIP_STORED),
                                  lambda m: zipped(m, zipfile.ZIP_BZIP2),
                                  lambda m: zipped(m, zipfile.ZIP_LZMA)])  # fmt: skip
def test_members_come_in_the_order_of_their_names(
    tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes], rng: random.Random
) -> None:
    members = {f"{rng.choice(['a', '数据', 'B'])}/{n}.txt": rng.randbytes(rng.randrange(9)) + TEXT
               for n in range(30)}  # fmt: skip
    shuffled = dict(rng.sample(sorted(members.items()), len(members)))
    noise = {".hidden": b"h", "a/.git/config": b"h", "__MACOSX/a/1.txt": b"h", "z.gz": b""}
    noise["z.gz"] = PACKERS["gzip"](TEXT)
    found = contents(placed(tmp_path / "d", pack(shuffled | noise)))
    expected = {f"d/{name}": data for name, data in (members | {"z.gz": TEXT}).items()}
    assert list(found.items()) == sorted(expected.items(), key=lambda item: item[0].encode())


def test_archives_are_opened_to_a_depth_of_three(tmp_path: Path) -> None:
    deep = b"deep"
    for level in range(1, 5):
        deep = zipped({"x": deep}) if level % 2 else tarred({"x": deep})
        found = contents(placed(tmp_path / "d", deep))
        inside = "d" + "/x" * min(level, 3)
        assert found == {inside: b"deep" if level <= 3 else "nested too deep"}
    mixed = zipped({"b.tgz": gzip.compress(tarred({"c.csv.gz": gzip.compress(TEXT)}))})
    assert contents(placed(tmp_path / "a.zip", mixed)) == {"a.zip/b.tgz/c.csv.gz": TEXT}


def test_links_and_devices_in_archives_are_failures(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard"),
                           (tarfile.FIFOTYPE, "pipe"), (tarfile.CHRTYPE, "tty"),
                           (tarfile.DIRTYPE, "folder")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    odd = "not a regular file"
    expected = {f"t/{name}": odd for name in ("hard", "pipe", "soft", "tty")}
    assert contents(placed(tmp_path / "t", out.getvalue())) == expected
    link = zipfile.ZipInfo("soft")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive_:
        archive_.writestr(link, "/etc/passwd")
        archive_.writestr("folder/", "")
    assert contents(placed(tmp_path / "z", out.getvalue())) == {"z/soft": odd}


def test_an_encrypted_member_leaves_the_others(tmp_path: Path) -> None:
    packed = bytearray(zipped({"a.txt": TEXT, "b.txt": TEXT}))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(magic) + flags] |= 1
    found = contents(placed(tmp_path / "z", bytes(packed)))
    assert found == {"z/a.txt": "encrypted", "z/b.txt": TEXT}


def test_names_in_archives_are_read_in_the_encoding_of_their_day(tmp_path: Path) -> None:
    packed = zipped({"AAAAAAAAAAAA.txt": TEXT, "../out.txt": TEXT, "/etc/x": TEXT})
    name = "数据说明文件".encode("gbk")
    path = placed(tmp_path / "z", packed.replace(b"AAAAAAAAAAAA", name))
    found = contents(path)
    assert set(found) == {"z/数据说明文件.txt", "z/../out.txt", "z//etc/x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z"]


def test_a_damaged_archive_keeps_its_good_members(tmp_path: Path, rng: random.Random) -> None:
    members = {f"{n}.txt": rng.randbytes(2000) for n in range(5)}
    packed = tarred(members, tarfile.USTAR_FORMAT)
    header = packed.index(b"3.txt")
    spoiled = packed[: header + 3] + b"?" + packed[header + 4 :]
    for data in (spoiled, packed[: header + 100], packed[:header]):
        found = contents(placed(tmp_path / "t", data))
        assert found.pop("t") == "damaged tar"
        assert found == {f"t/{n}.txt": members[f"{n}.txt"] for n in range(3)}
    found = contents(placed(tmp_path / "t", packed[: header + 600]))
    assert found["t/3.txt"] == "damaged tar"
    found = contents(placed(tmp_path / "t", gzip.compress(packed)[:7000]))
    assert found["t"] in ("damaged tar", "damaged gzip")
    assert found["t/1.txt"] == members["1.txt"]
    path = placed(tmp_path / "z", zipped(members, zipfile.ZIP_STORED))
    data = bytearray(path.read_bytes())
    data[data.index(members["2.txt"]) + 7] ^= 1
    found = contents(placed(path, bytes(data)))
    assert found == {f"z/{name}": d for name, d in members.items()} | {"z/2.txt": "damaged zip"}
    assert contents(placed(path, bytes(data[:-30]))) == {"z": "damaged zip"}


def test_any_damaged_archive_ends_without_an_exception(tmp_path: Path, rng: random.Random) -> None:
    members = {f"{n}.txt": rng.randbytes(300) + bytes(300) for n in range(4)}
    for pack in (zipped, tarred, lambda m: zipped(m, zipfile.ZIP_LZMA),
                 lambda m: zipped(m, zipfile.ZIP_BZIP2)):  # fmt: skip
        whole = pack(members)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            end = rng.choice([len(data), rng.randrange(1, len(data))])
            contents(placed(tmp_path / "f", bytes(data[:end])))


def test_a_bomb_in_an_archive_leaves_the_others_and_many_end_it(tmp_path: Path) -> None:
    options = ReadOptions(max_expansion=2)
    path = placed(tmp_path / "z", zipped({"a": bytes(65 << 20), "b": TEXT}))
    assert contents(path, options) == {"z/a": "compression bomb", "z/b": TEXT}
    nested = placed(tmp_path / "n", zipped({"a.gz": gzip.compress(bytes(65 << 20)), "b": TEXT}))
    assert contents(nested, options) == {"n/a.gz": "compression bomb", "n/b": TEXT}


# ---- what is no text


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}), "save it as text"),
        (zipped({"mimetype": b"application/epub+zip", "x": b""}), "e-book"),
        (zipped({"META-INF/MANIFEST.MF": b"", "x": b""}), "Java"),
        (zipped({"archive/data.pkl": b"", "archive/data/0": b""}), "pickle"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image"),
        (b"\x7fELF\x02\x01", "program"),
        (b"SQLite format 3\0", "CSV"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0K\x01.", "pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\x10\x01\0\0\0\0\0\0{\"w\":{}}", "weights"),
        (b"GGUF\x03\0\0\0", "weights"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office"),
        (b"7z\xbc\xaf\x27\x1c", "unpack"),
    ],
)  # fmt: skip
def test_what_is_no_text_says_what_it_looks_like(tmp_path: Path, data: bytes, detail: str) -> None:
    for path in (placed(tmp_path / "a.txt", data), placed(tmp_path / "b", gzip.compress(data))):
        (failure,) = open_blobs(path, "f", OPTIONS)
        assert isinstance(failure, Failure)
        assert failure.reason == "not text"
        assert detail in failure.detail


@pytest.mark.parametrize(
    "data",
    [b"PAR1\x15\x04", b"ARROW1\0\0", b"\xff\xff\xff\xff\x10\0\0\0", b"\xc5\x05\x10\0\x01\0\0\0",
     b"GGUF is a file form.", b"ID3 tags", b"RIFF", b"BZh is bzip2's mark", b"PK", b"MZ is a mark",
     b"Rar! it sleeps", "茶".encode("utf-16")],
)  # fmt: skip
def test_other_forms_of_data_pass(tmp_path: Path, data: bytes) -> None:
    assert contents(placed(tmp_path / "a.bin", data)) == {"a.bin": data}


def test_a_file_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    assert contents(tmp_path / "gone") == {"gone": "unreadable"}
    assert contents(tmp_path) == {tmp_path.name: "unreadable"}
    os.mkfifo(tmp_path / "pipe")
    assert contents(tmp_path / "pipe") == {"pipe": "unreadable"}


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read")
def test_an_error_of_the_disk_while_reading_is_damage() -> None:
    # The first page of memory is never there: reading it fails as a broken disk does.
    (failure,) = open_blobs(Path("/proc/self/mem"), "f", OPTIONS)
    assert failure == Failure("f", "unreadable", "Input/output error")


# ---- finding files


def names(found: tuple[list[Input], list[Failure]], root: Path) -> list[str]:
    return [entry.path.relative_to(root).as_posix() for entry in found[0]]


def tree(root: Path, listed: str) -> Path:
    for name in listed.split():
        placed(root / name, b"x")
    return root


def test_a_folder_is_walked_without_hidden_entries_in_one_order(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "b.txt a/z.txt a/.hidden .git/config a/.x/y.txt ä.txt B.txt 茶/1")
    found = find_inputs([str(root), str(root / "b.txt"), str(root / "a")], None)
    assert names(found, root) == ["B.txt", "a/z.txt", "b.txt", "ä.txt", "茶/1"]
    assert found[1] == []
    entry = found[0][0]
    status = entry.path.stat()
    assert entry[1:] == (str(entry.path), status.st_size, status.st_mtime_ns)


def test_what_is_no_regular_file_is_a_failure_and_never_opened(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "a.txt")
    os.mkfifo(root / "pipe")
    (root / "lost").symlink_to(root / "nowhere")
    (root / "null").symlink_to("/dev/null")
    (root / "circle").symlink_to(root / "circle")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(root / "s"))
    server.close()
    files, failures = find_inputs([str(root)], None)
    assert [entry.path.name for entry in files] == ["a.txt"]
    assert [(Path(f.source).name, f.reason) for f in failures] == [
        ("circle", "unreadable"), ("lost", "dangling link"), ("null", "not a regular file"),
        ("pipe", "not a regular file"), ("s", "not a regular file"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no files in .*not a regular file"):
        find_inputs([str(root / "pipe")], None)


def test_linked_folders_are_followed_once_and_their_files_keep_their_own_names(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "in", "a/1 b/2 z/3")
    tree(tmp_path / "other", "4 deep/5")
    (root / "a" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "z")
    (root / "out").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root)
    (root / "0").symlink_to(root / "b" / "2")
    os.link(root / "z" / "3", root / "z" / "4")
    found = find_inputs([str(root)], None)
    assert names(found, root) == ["0", "a/1", "out/4", "out/deep/5", "z/3"]
    for pattern in ("**", "**/*", "*/**"):
        again = find_inputs([str(root / pattern)], None)
        assert {entry.path.resolve() for entry in again[0]} >= {
            entry.path.resolve() for entry in found[0] if entry.path.name != "0"
        }


def test_globs_are_expanded_unless_a_file_has_that_name(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jsonl a/b/2.jsonl a/b/c/3.txt a/.h/4.jsonl a/[1].jsonl")
    for pattern, expected in {
        "a/*.jsonl": ["a/1.jsonl", "a/[1].jsonl"],
        "a/[1].jsonl": ["a/[1].jsonl"],
        "a/?.jsonl": ["a/1.jsonl"],
        "**/*.jsonl": ["a/1.jsonl", "a/[1].jsonl", "a/b/2.jsonl"],
        "a/**/c": ["a/b/c/3.txt"],
        "a/b/**": ["a/b/2.jsonl", "a/b/c/3.txt"],
        "a/*": ["a/1.jsonl", "a/[1].jsonl", "a/b/2.jsonl", "a/b/c/3.txt"],
        "a/.h/*": ["a/.h/4.jsonl"],
    }.items():
        assert names(find_inputs([str(root / pattern)], None), root) == expected, pattern
    with pytest.raises(UsageError, match=r"x\*y matches no file"):
        find_inputs([str(root / "x*y")], None)


def test_globs_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "1.jsonl a/2.jsonl .h/3.jsonl")
    monkeypatch.chdir(tmp_path)
    for named, expected in ((".", 2), ("**/*.jsonl", 2), ("*.jsonl", 1), ("./a", 1)):
        found = find_inputs([named], None)[0]
        assert len(found) == expected
        assert all(entry.name in ("1.jsonl", "a/2.jsonl") for entry in found), found


def test_a_path_that_is_not_there_is_a_usage_error_and_an_empty_folder_has_no_data(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="absent does not exist; check the path"):
        find_inputs([str(tmp_path), str(tmp_path / "absent")], None)
    (tmp_path / ".hidden").touch()
    with pytest.raises(DataError, match="no files in"):
        find_inputs([str(tmp_path)], None)
    assert find_inputs([str(tmp_path / ".hidden")], None)[0][0].path == tmp_path / ".hidden"


def test_the_output_folder_is_left_out_by_every_way_in(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "a.txt out/b.txt out/c/d.txt outer/e.txt")
    (root / "link").symlink_to(root / "out" / "c")
    (root / "file").symlink_to(root / "out" / "b.txt")
    for named in ([str(root)], [str(root), str(root / "out" / "c")], [str(root / "**")]):
        assert names(find_inputs(named, root / "out"), root) == ["a.txt", "outer/e.txt"]
    assert len(find_inputs([str(root)], tmp_path / "not there")[0]) == 4


def test_a_folder_or_file_without_permission_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "in", "a.txt b.txt shut/c.txt")
    scan, allowed = os.scandir, os.access

    def scandir(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda p, m: not str(p).endswith("b.txt") and allowed(p, m))
    files, failures = find_inputs([str(root)], None)
    assert [entry.path.name for entry in files] == ["a.txt"]
    assert [(Path(f.source).name, f.reason) for f in failures] == [
        ("b.txt", "unreadable"), ("shut", "unreadable"),
    ]  # fmt: skip


def test_any_file_name_can_be_found_stored_and_read(tmp_path: Path) -> None:
    strange = [b"caf\xe9.txt", b"new\nline", b"\x1b[31mred", b"x" * 255, "茶".encode(), b" "]
    for name in strange:
        try:
            placed(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), TEXT)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    files, failures = find_inputs([str(tmp_path)], None)
    assert [os.fsencode(entry.path.name) for entry in files] == sorted(strange)
    assert not failures
    for entry in files:
        entry.name.encode("utf-8")
        assert contents(entry.path) == {entry.path.name: TEXT}
    assert f"{tmp_path}/caf\\xe9.txt" in [entry.name for entry in files]
    assert written(files[0].path) == files[0].name


def test_a_saved_dataset_gives_its_data_files_alone(tmp_path: Path) -> None:
    def dataset(folder: Path, shards: list[str]) -> None:
        tree(folder, "dataset_info.json cache-1.arrow data-00000-of-00001.arrow notes.txt")
        state = {"_data_files": [{"filename": name} for name in shards], "_split": "train"}
        placed(folder / "state.json", json.dumps(state).encode())

    root = tmp_path / "all"
    placed(root / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    dataset(root / "train", ["data-00000-of-00001.arrow"])
    dataset(root / "test", ["data-00000-of-00001.arrow", "../data.arrow"])
    dataset(root / "stale", ["data-00000-of-00001.arrow"])
    found = find_inputs([str(tmp_path)], None)
    shard = "data-00000-of-00001.arrow"
    assert names(found, root) == [f"test/{shard}", f"train/{shard}"]
    assert [f.reason for f in found[1]] == ["missing file"]
    placed(root / "train" / "state.json", b"{")
    found = find_inputs([str(root / "train")], None)
    assert names(found, root / "train") == ["cache-1.arrow", shard, "notes.txt"]
    assert [f.reason for f in found[1]] == ["bad JSON"]


def test_many_files_take_little_memory_each(tmp_path: Path) -> None:
    for n in range(3000):
        (tmp_path / f"{n % 30}").mkdir(exist_ok=True)
        (tmp_path / f"{n % 30}" / f"{n}.txt").touch()
    # The interpreter's one table of interned names may double at any time, and then by megabytes;
    # while these are held, they are in it.
    before = find_inputs([str(tmp_path)], None)
    tracemalloc.start()
    files, _ = find_inputs([str(tmp_path)], None)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == len(before[0]) == 3000
    assert held < 3000 * 1000
    assert peak < 3000 * 2000
