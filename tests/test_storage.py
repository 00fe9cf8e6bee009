"""Files and folders are whole or absent; damage is found and named; writers take turns."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from chatbench.errors import EnvironmentFault, ExitCode, IntegrityError, InUseError, UsageError
from chatbench.storage import (
    LOCK,
    MANIFEST,
    AppendLog,
    FolderLock,
    disk_errors,
    hash_file,
    new_folder,
    read_manifest,
    remove_folder,
    require_own,
    verify,
    write_file,
)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def finished(tmp_path: Path, rng: random.Random) -> Path:
    """A folder of three files, one of them empty and one in a subfolder."""
    final = tmp_path / "home" / "finished"
    with new_folder(final, "thing", {"note": "小店"}) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "data.bin").write_bytes(rng.randbytes(rng.randrange(1, 9000)))
        (folder / "text.txt").write_bytes(rng.randbytes(60))
        (folder / "empty").touch()
    return final


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A child that has the names of storage."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from chatbench.storage import *\n{code}", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path` until it ends."""
    child = python(
        "import sys, pathlib\n"
        "with FolderLock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()",
        tmp_path,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


# ---- one file


def test_a_written_file_holds_the_bytes_and_leaves_nothing_beside_it(
    tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    for size in (0, 1, rng.randrange(1 << 16)):
        data = rng.randbytes(size)
        write_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["file.bin"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def refuse(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot write .*file: Input/output error"):
        write_file(path, b"new")
    assert tree(tmp_path) == {"file": b"old"}


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault) as caught:
        write_file(tmp_path / "file" / "below", b"")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    with pytest.raises(EnvironmentFault, match="File name too long"):
        write_file(tmp_path / ("n" * 300), b"")


def test_errors_of_rust_libraries_name_the_disk_too(tmp_path: Path) -> None:
    full = RuntimeError("I/O error: No space left on device (os error 28)")
    what = r"No space left on device; .* MB are free"
    with pytest.raises(EnvironmentFault, match=what), disk_errors(tmp_path):
        raise full
    with pytest.raises(IntegrityError), disk_errors(tmp_path):
        raise IntegrityError("not readable (os error 2)")
    with pytest.raises(RuntimeError, match="else"), disk_errors(tmp_path):
        raise RuntimeError("something else")


# ---- folders


def test_the_manifest_says_every_size_and_sum(finished: Path) -> None:
    manifest = verify(finished, "thing")
    assert manifest.info == {"note": "小店"}
    assert sorted(manifest.files) == ["empty", "inner/data.bin", "text.txt"]
    for name, entry in manifest.files.items():
        assert entry.bytes == (finished / name).stat().st_size
        assert entry.sha256 == hash_file(finished / name)
    assert os.listdir(finished.parent) == ["finished"]


def test_info_may_be_filled_inside_the_block(tmp_path: Path) -> None:
    info: dict[str, object] = {}
    with new_folder(tmp_path / "f", "thing", info):
        info["late"] = 1
    assert verify(tmp_path / "f").info == {"late": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_an_exception_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    expected = EnvironmentFault if error is OSError else error

    def fail() -> None:
        with new_folder(tmp_path / "f", "thing") as folder:
            (folder / "half").write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_exception_inside_leaves_the_folder_to_be_replaced(finished: Path) -> None:
    before = tree(finished)

    def fail() -> None:
        with new_folder(finished, "thing", replace=True) as folder:
            (folder / "text.txt").write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tree(finished) == before
    assert os.listdir(finished.parent) == ["finished"]


def test_replacing_swaps_everything(finished: Path) -> None:
    with new_folder(finished, "thing", replace=True) as folder:
        (folder / "only").write_bytes(b"new")
        assert (finished / "text.txt").exists(), "the old one stays until the new one is whole"
    assert sorted(tree(finished)) == [MANIFEST, "only"]
    assert os.listdir(finished.parent) == ["finished"]


def test_a_folder_that_is_there_is_not_replaced_unasked(finished: Path) -> None:
    before = tree(finished)
    with pytest.raises(UsageError, match="finished exists already"), new_folder(finished, "thing"):
        pytest.fail("the block must not run")
    assert tree(finished) == before


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError), new_folder(tmp_path / "notes", "thing", replace=True):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"notes": b"mine"}


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_name_that_cannot_be_renamed_is_refused(name: str) -> None:
    with pytest.raises(UsageError), new_folder(Path(name), "thing", replace=True):
        pytest.fail("the block must not run")


def test_what_somebody_put_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "f"

    def write() -> None:
        with new_folder(final, "thing"):
            final.mkdir()
            (final / "theirs").write_bytes(b"theirs")

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert tree(tmp_path) == {"f/theirs": b"theirs"}


def test_only_an_empty_folder_or_one_of_the_same_kind_may_be_replaced(
    finished: Path, tmp_path: Path
) -> None:
    require_own(finished, "thing", overwrite=True)
    require_own(tmp_path / "absent", "thing", overwrite=True)
    (tmp_path / "hollow").mkdir()
    require_own(tmp_path / "hollow", "thing", overwrite=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    (tmp_path / "file").touch()
    for path, kind in ((photos, "thing"), (finished, "other"), (tmp_path / "file", "thing")):
        with pytest.raises(UsageError, match="is not replaced"):
            require_own(path, kind, overwrite=True)
    (photos / MANIFEST).write_text('{"name": "an extension"}')
    with pytest.raises(UsageError, match="is not replaced"):
        require_own(photos, "thing", overwrite=True)


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    child = python(
        "import os, signal, sys, pathlib\n"
        "with new_folder(pathlib.Path(sys.argv[1]), 'thing') as folder:\n"
        "    (folder / 'litter').write_bytes(b'x' * 1000)\n"
        "    (folder / 'sub').mkdir()\n"
        "    (folder / 'sub' / 'more').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path / "f",
    )
    with child:
        assert child.wait() == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".f.partial"]
    with new_folder(tmp_path / "f", "thing") as folder:
        assert [name for name in os.listdir(folder) if name != LOCK] == []
        (folder / "new").touch()
    assert sorted(tree(tmp_path / "f")) == [MANIFEST, "new"]
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "unlink"])
def test_a_kill_at_any_step_of_the_swap_leaves_old_or_new_and_the_next_tidies_up(
    tmp_path: Path, call: str
) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "final, call, left = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "real = getattr(os, call)\n"
        "def die(*arguments, **named):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*arguments, **named)\n"
        "setattr(os, call, die)\n"
        "with new_folder(final, 'thing', replace=True) as folder:\n"
        "    (folder / 'name').write_bytes(b'new')\n"
    )
    for step in range(20):
        final = tmp_path / f"{step}" / "f"
        with new_folder(final, "thing") as folder:
            (folder / "name").write_bytes(b"old")
        with python(code, final, call, str(step)) as child:
            died = child.wait() == -signal.SIGKILL
        if final.exists():
            verify(final, "thing")
            assert (final / "name").read_bytes() in (b"old", b"new")
        else:
            # Between the two renames both versions lie there whole, under their hidden names.
            assert (final.with_name(".f.old") / "name").read_bytes() == b"old"
            assert (final.with_name(".f.partial") / "name").read_bytes() == b"new"
        if not died:
            assert os.listdir(final.parent) == ["f"]
            assert step > 0, f"{call} was never called"
            return
        with new_folder(final, "thing", replace=True) as folder:
            (folder / "name").write_bytes(b"newest")
        assert (final / "name").read_bytes() == b"newest"
        assert os.listdir(final.parent) == ["f"]
    pytest.fail(f"still dying after {step} calls of {call}")


def test_a_removed_folder_is_gone_and_one_that_is_absent_is_no_error(finished: Path) -> None:
    remove_folder(finished)
    remove_folder(finished)
    assert os.listdir(finished.parent) == []


# ---- damage


def test_any_flipped_bit_is_found_and_its_file_named(finished: Path, rng: random.Random) -> None:
    for name in ("inner/data.bin", "text.txt"):
        path = finished / name
        whole = path.read_bytes()
        for bit in rng.sample(range(8 * len(whole)), k=min(8 * len(whole), 12)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError, match="checksum") as caught:
                verify(finished, "thing")
            assert str(path) in str(caught.value)
            assert caught.value.exit_code == ExitCode.INTEGRITY == 4
        path.write_bytes(whole)
    verify(finished, "thing")


def test_a_truncated_or_grown_file_is_named_with_both_sizes(finished: Path) -> None:
    path = finished / "text.txt"
    for change in (lambda b: b[:-1], lambda b: b + b"x", lambda b: b""):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        has = len(change(whole))
        with pytest.raises(IntegrityError, match=f"text.txt has {has} bytes.* says {len(whole)}"):
            verify(finished)
        path.write_bytes(whole)


def test_a_missing_file_is_named(finished: Path) -> None:
    (finished / "empty").unlink()
    with pytest.raises(IntegrityError, match="empty is missing"):
        verify(finished)


def test_a_folder_without_manifest_or_of_another_kind_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="holds a thing, not a corpus"):
        verify(finished, "corpus")
    assert read_manifest(tmp_path) is None
    with pytest.raises(IntegrityError, match="not a finished corpus"):
        verify(tmp_path, "corpus")


def test_no_damage_to_the_manifest_itself_ends_in_a_traceback(
    finished: Path, rng: random.Random
) -> None:
    path = finished / MANIFEST
    whole = path.read_bytes()
    spoiled = [whole[:cut] for cut in rng.sample(range(len(whole) - 1), 30)]
    for bit in rng.sample(range(8 * len(whole)), 120):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        spoiled.append(bytes(damaged))
    for data in [*spoiled, b"", b"[]", b"\xff", b'{"a":' * 100_000]:
        path.write_bytes(data)
        try:
            manifest = verify(finished, "thing")
        except IntegrityError as error:
            assert str(finished) in str(error)  # noqa: PT017
        else:
            # A flip inside the notes or in white space changes no fact about the files.
            assert manifest.files == msgspec.json.decode(whole, type=type(manifest)).files


# ---- locks


def test_a_lock_held_by_another_process_names_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(InUseError, match=f"in use by process {holder.pid} on ") as caught:
        FolderLock(tmp_path).__enter__()
    assert caught.value.exit_code == ExitCode.IN_USE == 6


def test_a_lock_is_free_again_after_kill_9_of_its_holder(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        pass


def test_two_writers_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    final = tmp_path / "f"
    with new_folder(final, "thing") as folder:
        (folder / "name").write_bytes(b"first")
        with pytest.raises(InUseError), new_folder(final, "thing"):
            pytest.fail("the block must not run")
        assert (folder / "name").exists()
    assert (final / "name").read_bytes() == b"first"
    assert not (final / LOCK).exists()


# ---- a full disk


FILL = """
import sys, pathlib
from chatbench.errors import UserError
home = pathlib.Path(sys.argv[1])
write_file(home / "small", b"old")
def attempt(write):
    try:
        write()
    except UserError as error:
        print(int(error.exit_code), error)
    else:
        print("written")
def folder():
    with new_folder(home / "f", "thing") as inner:
        (inner / "big").write_bytes(b"x" * 3_000_000)
def shard():
    import numpy
    from safetensors.numpy import save_file
    with new_folder(home / "f", "thing") as inner:
        save_file({"a": numpy.zeros(400_000)}, inner / "big")
def log():
    lines = AppendLog(home / "log")
    try:
        while True:
            lines.append("y" * 10_000)
    finally:
        try:
            lines.close()
        except OSError:
            pass
attempt(lambda: write_file(home / "small", b"x" * 3_000_000))
attempt(folder)
attempt(shard)
print(sorted(p.name for p in home.iterdir()), (home / "small").read_bytes())
attempt(log)
"""


def check_filled(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 0, done.stderr
    *attempts, left, log = done.stdout.splitlines()
    assert len(attempts) == 3
    for line in (*attempts, log):
        assert line.startswith("5 cannot write ")
        assert f": {why}; " in line
        assert "MB are free there" in line
    assert left == "['small'] b'old'"


def test_a_full_disk_is_exit_code_5_and_leaves_the_old_state(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--mount", "sh", "-c"]
    try:
        able = subprocess.run(
            [*mount, f"mount -t tmpfs -o size=1m none {disk}"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if able.returncode:
        pytest.skip("no private mounts here")
    done = subprocess.run(
        [*mount, 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"', "sh", disk,
         sys.executable, f"from chatbench.storage import *\n{FILL}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    check_filled(done, "No space left on device")
    assert os.listdir(disk) == []


def test_a_file_size_limit_is_exit_code_5_and_leaves_the_old_state(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(
        [sys.executable, "-c", f"from chatbench.storage import *\n{FILL}", tmp_path],
        capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    check_filled(done, "File too large")


# ---- logs


def test_a_log_is_cut_back_to_what_was_remembered(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AppendLog(path)
    log.append({"step": 1, "text": "茶"})
    remembered = log.sync()
    log.append({"step": 2})
    log.close()
    assert path.stat().st_size > remembered
    log = AppendLog(path, remembered)
    log.append({"step": 3})
    assert log.sync() == path.stat().st_size
    log.close()
    assert [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] == [
        {"step": 1, "text": "茶"},
        {"step": 3},
    ]


def test_a_log_shorter_than_remembered_is_not_filled_with_zeros(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl", 1000)
    log.append(1)
    log.close()
    assert (tmp_path / "log.jsonl").read_bytes() == b"1\n"
