"""Which conversation it is by flags, stdin and stdout; and the real program in real pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat.piping import GREEDY

from chatbench.chat import pipe, start
from chatbench.errors import UsageError
from chatbench.settings import ChatSettings, replace


def settings_for(base_run: Path, **given: Any) -> ChatSettings:
    return ChatSettings(model=str(base_run), device="cpu", **{"sampling": GREEDY, **given})


@pytest.mark.parametrize(
    ("given", "piped", "asked"),
    [("hello", b"", "hello"), (None, "你好\n".encode(), "你好\n"), ("-", b"x", "x"),
     ("Sum up:", b"of the loop", "Sum up:"), ("hello", b"  \n", "hello"),
     (None, b"\xffbad", "\ufffdbad"), ("\udcff?", b"", "??"),
     (None, b"\xef\xbb\xbf\xe8\x8c\xb6", "茶")],
)  # fmt: skip
def test_what_is_asked_is_the_prompt_or_else_what_is_piped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base_run: Path, given: str | None,
    piped: bytes, asked: str,
) -> None:  # fmt: skip
    seen = []
    (tmp_path / "in").write_bytes(piped)
    monkeypatch.setattr(pipe, "answer", lambda asker, text, as_json: seen.append(text) or 0)
    with open(tmp_path / "in", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert start.chat(settings_for(base_run, prompt=given)) == 0
    assert seen == [asked]


@pytest.mark.parametrize(("jsonl", "why"), [(True, "stdin is closed"), (False, "no text")])
def test_a_closed_stdin_is_a_mistake_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, base_run: Path, jsonl: bool, why: str
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=why):
        start.chat(settings_for(base_run, jsonl=jsonl))


@pytest.mark.parametrize(
    ("given", "why"),
    [({"jsonl": True, "prompt": "Hi"}, "leave -p out"),
     ({"jsonl": True, "json": True}, "in JSON already"),
     ({"out": "x", "prompt": "Hi"}, "add --jsonl"),
     ({"resume": True, "jsonl": True}, "add --out FILE"),
     ({"sampling": replace(GREEDY, logprobs=1), "prompt": "Hi"}, "add --json or --jsonl"),
     ({"continue_": True, "prompt": "Hi"}, "on a terminal"),
     ({"session": "tea", "prompt": "你好"}, "on a terminal"),
     ({"raw": True, "prompt": "Hi", "system": "友善"}, "no --system prompt")],
)  # fmt: skip
def test_flags_without_effect_are_refused(base_run: Path, given: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        start.chat(settings_for(base_run, **given))


@pytest.mark.parametrize("given", [{}, {"json": True}, {"samples": 3}])
def test_neither_prompt_nor_piped_text_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, base_run: Path, given: dict[str, Any]
) -> None:
    with open(os.devnull, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="give -p TEXT or pipe text in"):
            start.chat(settings_for(base_run, **given))


@pytest.mark.parametrize("given", [{"json": True}, {"samples": 3}])
def test_a_conversation_is_neither_json_nor_sampled(
    monkeypatch: pytest.MonkeyPatch, base_run: Path, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(start.console, "stdin_is_terminal", lambda: True)
    with pytest.raises(UsageError, match=r"--(json|samples) needs a prompt"):
        start.chat(settings_for(base_run, **given))


# -- the real program ----------------------------------------------------------------------------


def shell(command: str, **given: Any) -> subprocess.CompletedProcess[bytes]:
    """A line for bash, in which `chatbench` is this one."""
    prelude = f'chatbench() {{ "{sys.executable}" -m chatbench "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", prelude + command], capture_output=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL, **given,
    )  # fmt: skip


def test_a_waiting_writer_is_answered_line_by_line(base_run: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "chatbench", "chat", "-m", base_run, "--jsonl", "--max-tokens", "3"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(json.dumps({"id": number, "prompt": f"问{number}"}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stdout.read() == ""


def test_ctrl_c_in_a_pipe_leaves_whole_samples_and_130(base_run: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "chatbench", "chat", "-m", base_run, "-p", "茶", "--n", "1000",
         "-b", "1", "--max-tokens", "40"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
        assert (first + rest).endswith(b"\n")
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "how", ["--jsonl --max-tokens 2 -b 2 < q.jsonl", "-p x --json --n 3 --max-tokens 90"]
)
def test_a_reader_that_leaves_ends_the_program_quietly(
    base_run: Path, tmp_path: Path, how: str
) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "x"}\n' * 200)
    # The reader of the second is gone before there is anything to read.
    reader = "head -1" if "jsonl" in how else "true"
    done = shell(f"chatbench chat -m {base_run} {how} | {reader}; echo ${{PIPESTATUS[0]}} >&2",
                 cwd=tmp_path)  # fmt: skip
    assert len(done.stdout.splitlines()) == ("jsonl" in how)
    assert done.stderr == b"141\n"


def test_chinese_goes_in_and_out_with_nothing_around(base_run: Path) -> None:
    """No HOME, no locale, no colour, no terminal, and stderr is closed."""
    environment = {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "NO_COLOR": "1", "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "latin-1",
    }  # fmt: skip
    row = '{"id": "茶", "prompt": "茶"}'
    done = shell(
        f"echo '{row}' | chatbench chat -m {base_run} --jsonl --max-tokens 3 2>&-; echo $?",
        env=environment,
    )
    assert done.stderr == b""
    reply, code = done.stdout.decode().splitlines()
    assert code == "0"
    assert json.loads(reply)["id"] == "茶"


def test_with_everything_closed_there_is_a_code(base_run: Path) -> None:
    done = shell(
        f"chatbench chat -m {base_run} --jsonl <&- ; echo $?;"
        f"chatbench chat -m {base_run} -p x >&- ; echo $?;"
        f"chatbench chat -m {base_run}/no -p x 2>&- ; echo $?"
    )
    assert done.stdout == b"2\n5\n2\n"
    first, second = done.stderr.decode().splitlines()
    assert "stdin is closed" in first
    assert "stdout is closed" in second


def test_a_file_never_takes_the_place_of_a_closed_stream(base_run: Path, tmp_path: Path) -> None:
    """What is written to stderr by whomever must not end in the replies."""
    done = shell(
        f'echo \'{{"prompt": "x"}}\' | chatbench chat -m {base_run} --jsonl --max-tokens 2 -o out '
        "2>&- >&-",
        cwd=tmp_path,
    )
    assert done.returncode == 0
    (line,) = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["id"] == 1


def test_a_prompt_needs_little_more_than_torch(base_run: Path) -> None:
    """What one reply does not use is not loaded: each of these costs as much as torch itself, or a
    good part of it."""
    code = (
        "import sys\nfrom chatbench.cli import run\n"
        f"assert run(['chat', '-m', {str(base_run)!r}, '-p', 'x', '--max-tokens', '2', "
        "'--json']) == 0\n"
        "heavy = {'torch._dynamo', 'sympy', 'nltk', 'sacrebleu', 'prompt_toolkit', 'jinja2',"
        " 'rich.console', 'huggingface_hub', 'transformers', 'yaml'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")
