"""The layers of the house, and what may not be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "chatbench"

# A module imports from groups further down, or from its own package; siblings share a line.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"info"},
    {"demo"},
    {"chat"},
    {"flags"},
    {"train", "evaluate", "export", "classify"},
    {"engine"},
    {"report"},
    {"corpus", "model"},
    {"text"},
    {"config"},
    {"settings"},
    {"runs"},
    {"storage", "hub"},
    {"conversation"},
    {"console"},
    {"errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FREE_OF_TORCH = ("info", "report", "runs", "corpus", "text", "cli", "flags", "config", "settings",
                 "storage", "hub", "conversation", "console", "errors")  # fmt: skip
MODULES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The package or top-level module a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "chatbench":
                yield from (f"chatbench.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_only_look_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name in imports(parsed(path)):
        parts = name.split(".")
        if parts[0] != "chatbench" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        there = parts[1]
        assert there == here or LEVEL[there] > LEVEL[here], f"{path.name} imports {name}"


def test_every_module_has_a_place() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_relative_and_banned_imports_are_absent(path: Path) -> None:
    tree = parsed(path)
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
    assert not {name.split(".")[0] for name in imports(tree)} & {"click", "pickle", "transformers"}


@pytest.mark.parametrize("name", FREE_OF_TORCH)
def test_torch_stays_out_of_the_lower_house(name: str) -> None:
    files = [path for path in MODULES if room(path) == name]
    for path in files:
        assert not {n.split(".")[0] for n in imports(parsed(path))} & {"torch"}, path


def test_preparing_a_corpus_does_not_load_torch() -> None:
    code = "import chatbench.corpus.build, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "demo",
        "preprocess",
        "pretrain",
        "finetune",
        "evaluate",
        "chat",
        "classify",
        "info",
        "screen",
        "export",
        "report",
        "runs",
    ],
)
def test_help_loads_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\nfrom chatbench.cli import run\n"
        f"assert run({[verb] if verb else []} + ['--help']) == 0\n"
        "heavy = {'torch', 'nltk', 'tokenizers', 'numpy', 'transformers', 'sacrebleu'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_room_is_called_utils_and_none_is_a_hall() -> None:
    for path in MODULES:
        assert path.stem not in {"utils", "helpers", "common", "misc"}
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_no_function_is_longer_than_a_screen() -> None:
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


def test_public_functions_and_classes_say_what_they_are() -> None:
    for path in MODULES:
        if path.name != "__init__.py":
            assert ast.get_docstring(parsed(path)), path
