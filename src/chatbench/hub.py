"""hf://owner/name: a model fetched from the Hugging Face hub. Only here does anything connect."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chatbench.errors import EnvironmentFault, UsageError, UserError

PREFIX = "hf://"
_NAME = re.compile(r"hf://((?:[\w.-]+/)?[\w.-]+)(?:@(?!.*\.\.)([\w.-][\w./-]*))?", re.ASCII)
_TOKENIZER_FILES = [
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json",
    "chat_template*.jinja",
]  # fmt: skip
_WEIGHT_FILES = [
    "*.safetensors", "*.safetensors.index.json", "adapter_config.json",
    "adapter_model.safetensors",
]  # fmt: skip
# Other forms of the same model lie in folders, or, from Mistral, beside it.
_LEFT_OUT = ["*/*", "consolidated*"]


def is_hub_name(name: str | Path) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX)


def fetch(name: str, *, weights: bool = True, connect: bool = True) -> Path:
    """The local folder of `hf://owner/name` or `hf://owner/name@revision`, fetched as far as it is
    not in the cache of huggingface_hub. Without `weights`, only what text and chats need.

    With HF_HUB_OFFLINE=1, without `connect` or without a network, the cached copy.
    Raises UsageError (no such name, revision or safetensors there, or no access),
    EnvironmentFault (no network, no disk).
    """
    owner_name, revision = _parse(name)
    with _quiet_hub() as hub:
        try:
            found = hub.snapshot_download(
                owner_name,
                revision=revision,
                allow_patterns=_TOKENIZER_FILES + (_WEIGHT_FILES if weights else []),
                ignore_patterns=_LEFT_OUT,
                local_files_only=_offline() or not connect,
                library_name="chatbench",
            )
        except Exception as error:
            refused = _explain(name, error)
            if refused is None:
                raise
            raise refused from error
    folder = Path(found)
    if weights and not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{name} holds no safetensors, and other weight files, pickles above all, are not read",
            hint="look for a revision or a copy of the model in safetensors",
        )
    return folder


def cached(owner_name: str) -> Path | None:
    """The folder of a model that was fetched before, without connecting to anything; else None."""
    try:
        return fetch(PREFIX + owner_name, connect=False)
    except UserError:
        return None


def _parse(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{name} is no name on the hub",
            hint="write hf://owner/name, or hf://owner/name@revision",
        )
    return found[1], found[2]


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


@contextmanager
def _quiet_hub() -> Iterator[Any]:
    """huggingface_hub, telling nobody what is done with it, and showing progress to people only.

    Raises UsageError when it is not installed.
    """
    before = os.environ.get("HF_HUB_DISABLE_TELEMETRY")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        try:
            import huggingface_hub as hub
            from huggingface_hub import constants
            from huggingface_hub import logging as hub_logging
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError as error:
            raise UsageError(
                f"{PREFIX} names need a package that is missing",
                hint="pip install huggingface-hub, or fetch the folder in another way",
            ) from error
        # It may have been imported before, and have read the environment then.
        told, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        if sys.stderr is None or not sys.stderr.isatty():
            with suppress(Warning):
                disable_progress_bars()
        try:
            yield hub
        finally:
            constants.HF_HUB_DISABLE_TELEMETRY = told
    finally:
        if before is None:
            del os.environ["HF_HUB_DISABLE_TELEMETRY"]
        else:
            os.environ["HF_HUB_DISABLE_TELEMETRY"] = before


def _explain(name: str, error: Exception) -> UserError | None:
    """What a failure of huggingface_hub means to who typed the name; None for a bug."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UsageError(
            f"{name} is open only to those whom its owners let in",
            hint="accept its terms on huggingface.co, then hf auth login, or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{name} names a revision that does not exist")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"{name} does not exist, or is private",
            hint="check the spelling; for a private one hf auth login, or set HF_TOKEN",
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name} is no name on the hub", hint="write hf://owner/name")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _unreachable(name)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return EnvironmentFault(f"the hub answered {status} for {name}", hint="try again later")
    # The client of older versions is requests, of newer ones httpx: neither is imported for this.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionError) or kinds & {"TransportError", "RequestException"}:
        return _unreachable(name)
    if isinstance(error, OSError):
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        return EnvironmentFault(f"cannot fetch {name}: {why}", hint="check space and HF_HOME")
    return None


def _unreachable(name: str) -> EnvironmentFault:
    if _offline():
        return EnvironmentFault(
            f"{name} is not wholly in the cache, and HF_HUB_OFFLINE forbids to fetch it",
            hint="unset HF_HUB_OFFLINE, or name a folder",
        )
    return EnvironmentFault(
        f"{name} is not wholly in the cache, and the hub cannot be reached",
        hint="check the network, or name a folder",
    )
