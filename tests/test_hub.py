"""hf:// names: fetched only when asked, from the cache when offline, and one line when it fails."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from chatbench import hub
from chatbench.corpus.vocabulary import open_given
from chatbench.errors import EnvironmentFault, UsageError, UserError
from chatbench.model.folder import open_model
from chatbench.text.tokenizer import open_tokenizer

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Let snapshot_download answer with a folder, or raise; gives what it is asked for."""

    def answer(found: Path | Exception) -> dict[str, Any]:
        calls: dict[str, Any] = {}

        def download(name: str, **options: Any) -> str:
            calls.update(options, name=name, telemetry=constants.HF_HUB_DISABLE_TELEMETRY,
                         environment=os.environ.get("HF_HUB_DISABLE_TELEMETRY"))  # fmt: skip
            if isinstance(found, Exception):
                raise found
            return str(found)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    return answer


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Path], Path]:
    """Put a folder into a cache of huggingface_hub, as it lays it out; gives the snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name: str, source: Path) -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        for number, path in enumerate(sorted(source.iterdir())):
            shutil.copy(path, repository / "blobs" / f"{number:040d}")
            (snapshot / path.name).symlink_to(f"../../blobs/{number:040d}")
        return snapshot

    return put


def failure(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """An error as the client raises it, without a client."""
    error = kind.__new__(kind)
    Exception.__init__(error, "a long story\nof several lines")
    error.response = type("Response", (), {"status_code": status})()
    return error


# ---- names


@pytest.mark.parametrize(
    ("name", "owner_name", "revision"),
    [
        ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        ("hf://gpt2", "gpt2", None),
        ("hf://a_b/c.d-e@v1.0", "a_b/c.d-e", "v1.0"),
        ("hf://a/b@refs/pr/3", "a/b", "refs/pr/3"),
    ],
)
def test_owner_name_and_revision_are_passed_on(
    asked: Callable[..., dict[str, Any]], base_run: Path, name: str, owner_name: str, revision: Any
) -> None:
    calls = asked(base_run / "model")
    assert hub.fetch(name) == base_run / "model"
    assert (calls["name"], calls["revision"]) == (owner_name, revision)


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf:///", "hf://a/b/c", "hf://a b/c", "hf://模型/名", "hf://a/b@", "hf://a/b@../../c",
     "hf://../b", "hf://a/b\n", "hf://a/b@x\0", "hf://a--b/c", "hf://-a/b", "hf://a/b.git"],
)  # fmt: skip
def test_a_name_that_cannot_be_meant_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        hub.fetch(name)


def test_a_path_is_no_hub_name(tmp_path: Path) -> None:
    assert not hub.is_hub_name("owner/name")
    assert not hub.is_hub_name(tmp_path)
    with pytest.raises(UsageError, match="hf://owner/name"):
        open_model("owner/name", CPU)


# ---- what is fetched


def test_only_what_is_read_is_fetched_and_nobody_is_told(
    asked: Callable[..., dict[str, Any]], base_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    before = constants.HF_HUB_DISABLE_TELEMETRY
    calls = asked(base_run / "model")
    hub.fetch("hf://a/b")
    assert calls["telemetry"] is True
    assert calls["environment"] == "1"
    assert constants.HF_HUB_DISABLE_TELEMETRY is before
    assert "HF_HUB_DISABLE_TELEMETRY" not in os.environ
    wanted = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "chat_template.jinja", "model.safetensors",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json",
        "adapter_model.safetensors",
    ]  # fmt: skip
    others = [
        "pytorch_model.bin", "modeling_x.py", "tf_model.h5", "consolidated.safetensors",
        "onnx/model.safetensors", "original/config.json", "README.md", "model.gguf", "vocab.pkl",
    ]  # fmt: skip

    def fetched() -> list[str]:
        patterns = {key: calls[key] for key in ("allow_patterns", "ignore_patterns")}
        return list(filter_repo_objects([*wanted, *others], **patterns))

    assert fetched() == wanted
    hub.fetch("hf://a/b", weights=False)
    assert fetched() == wanted[:6]


def test_a_model_and_a_tokenizer_open_by_their_hub_names(
    asked: Callable[..., dict[str, Any]], base_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked(base_run / "model")
    opened = open_model("hf://owner/name", CPU)
    assert opened.folder == base_run / "model"
    assert calls["local_files_only"] is True  # the tests are offline
    monkeypatch.delenv("HF_HUB_OFFLINE")
    given = open_given("hf://owner/name")
    assert calls["local_files_only"] is False
    open_given("hf://owner/name", fetched=True)
    assert calls["local_files_only"] is True
    assert given.digest == opened.tokenizer.digest == open_tokenizer(opened.folder).digest


def test_a_model_without_safetensors_is_a_usage_error(
    asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked(tmp_path)
    with pytest.raises(UsageError, match="no safetensors"):
        hub.fetch("hf://a/b")
    assert hub.fetch("hf://a/b", weights=False) == tmp_path


# ---- the cache


def test_offline_the_cached_copy_is_opened(
    cache: Callable[[str, Path], Path], base_run: Path
) -> None:
    snapshot = cache("owner/name", base_run / "model")
    assert hub.fetch("hf://owner/name") == snapshot
    assert hub.cached("owner/name") == hub.cached(f"owner/name@{COMMIT}") == snapshot
    assert hub.fetch(f"hf://owner/name@{COMMIT}") == snapshot
    opened = open_model("hf://owner/name", CPU)
    assert opened.folder == snapshot
    twin = open_model(base_run / "model", CPU)
    for ours, theirs in zip(opened.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_not_cached_is_one_line_offline(
    cache: Callable[[str, Path], Path], base_run: Path
) -> None:
    cache("owner/name", base_run / "model")
    assert hub.cached("owner/other") is None
    assert hub.cached("not a name") is None
    for name in ("hf://owner/other", "hf://owner/name@other"):
        with pytest.raises(EnvironmentFault, match="HF_HUB_OFFLINE") as caught:
            hub.fetch(name)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 5


def test_without_a_network_the_cached_copy_serves_and_else_one_line_is_said(
    cache: Callable[[str, Path], Path], base_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, on a machine whose resolver answers nothing."""

    def nowhere(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    with pytest.raises(EnvironmentFault, match="cannot be reached") as caught:
        open_model("hf://owner/name", CPU)
    assert "\n" not in str(caught.value)
    snapshot = cache("owner/name", base_run / "model")
    assert open_model("hf://owner/name", CPU).folder == snapshot


# ---- failures


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (failure(GatedRepoError, 403), UsageError, "owners let in"),
        (failure(RepositoryNotFoundError, 404), UsageError, "does not exist, or is private"),
        (failure(RevisionNotFoundError, 404), UsageError, "revision"),
        (failure(HfHubHTTPError, 503), EnvironmentFault, "503"),
        (LocalEntryNotFoundError("a\nb"), EnvironmentFault, "not wholly in the cache"),
        (ConnectionResetError(104, "reset"), EnvironmentFault, "not wholly in the cache"),
        (OSError(28, "No space left on device"), EnvironmentFault, "No space left"),
        (PermissionError(13, "Permission denied"), EnvironmentFault, "Permission denied"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    asked: Callable[..., dict[str, Any]], error: Exception, kind: type[UserError], word: str
) -> None:
    asked(error)
    with pytest.raises(UserError, match=word) as caught:
        open_model("hf://owner/name", CPU)
    assert type(caught.value) is kind
    assert "owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bug_stays_a_bug(asked: Callable[..., dict[str, Any]]) -> None:
    asked(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        hub.fetch("hf://owner/name")


def test_a_missing_client_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface-hub"):
        hub.fetch("hf://owner/name")
    assert hub.cached("owner/name") is None
