"""The files beside tokenizer.json: what they say of special tokens and the chat template."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbench.errors import IntegrityError
from chatbench.storage import explain_os_error, pretty_json, write_file

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_MAP_FILE = "special_tokens_map.json"
_STOPPING = ("generation_config.json", "config.json")
# All that decides how a folder's tokenizer works.
FILES = (TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE, _MAP_FILE, *_STOPPING)

TOKENIZER_LIMIT = 256 << 20
SETTINGS_LIMIT = 16 << 20
TEMPLATE_LIMIT = 4 << 20

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# transformers 4 and 5 spell the list of the others differently.
_LISTED = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenizerFiles:
    """What was found beside a tokenizer.json.

    `settings` is tokenizer_config.json, completed by special_tokens_map.json; `stop_ids` are the
    eos_token_id of generation_config.json and config.json; `own_template` is Jinja text;
    `given_template` is what the user named instead of it: a name, a path or Jinja text.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    own_template: str | None = None
    given_template: str | None = None

    @property
    def template_source(self) -> str | None:
        return self.own_template if self.given_template is None else self.given_template

    def token(self, name: str) -> str:
        """The token called `name`, such as "eos_token"; empty when the files name none."""
        return _token_text(self.settings.get(name))

    def special_tokens(self) -> list[str]:
        """Every token the settings call special, the named ones first."""
        found = [self.settings.get(name) for name in NAMED]
        for name in _LISTED:
            listed = self.settings.get(name)
            if isinstance(listed, dict):
                listed = list(listed.values())
            found += listed if isinstance(listed, list) else []
        return [text for text in map(_token_text, found) if text]

    def special_by_id(self) -> dict[int, str]:
        """The special tokens that transformers 4 lists with their ids."""
        listed = self.settings.get("added_tokens_decoder")
        rows = listed.items() if isinstance(listed, dict) else ()
        return {
            int(number): row["content"]
            for number, row in rows
            if number.isdecimal() and isinstance(row, dict) and row.get("special")
            and isinstance(row.get("content"), str)
        }  # fmt: skip


def _token_text(value: object) -> str:
    """A token is written as a string, or as an object with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def read_files(folder: Path, given_template: str | None = None) -> TokenizerFiles:
    """Everything beside the tokenizer.json of `folder`; all of it may be absent.

    Raises IntegrityError (damaged, too large, no regular file) and EnvironmentFault.
    """
    settings = read_settings(folder / SETTINGS_FILE)
    for name, value in read_settings(folder / _MAP_FILE).items():
        if settings.get(name) is None:
            settings[name] = value
    stops: list[int] = []
    for name in _STOPPING:
        value = read_settings(folder / name).get("eos_token_id")
        stops += [
            number
            for number in (value if isinstance(value, list) else [value])
            if isinstance(number, int) and not isinstance(number, bool)
        ]
    template = read_bounded(folder / TEMPLATE_FILE, TEMPLATE_LIMIT)
    if template is None:
        own = _template_in(settings.get("chat_template"), folder / SETTINGS_FILE)
    else:
        own = _decoded(template, folder / TEMPLATE_FILE)
    return TokenizerFiles(settings, tuple(stops), own, given_template)


def _template_in(value: object, path: Path) -> str | None:
    """The template of that key: text, or a list of named ones of which "default" is meant."""
    if isinstance(value, list):
        named = {
            row["name"]: row.get("template")
            for row in value
            if isinstance(row, dict) and isinstance(row.get("name"), str)
        }
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise IntegrityError(f"{path}: chat_template is neither text nor a list of named texts")
    return value or None


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file. Raises IntegrityError."""
    data = read_bounded(path, SETTINGS_LIMIT)
    if data is None:
        return {}
    try:
        found = json.loads(_decoded(data, path))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} holds no JSON object")
    return found


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not UTF-8: {error}") from error


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The bytes of a regular file of at most `limit` bytes; None when there is none.

    Raises IntegrityError (other kinds of file, too large) and EnvironmentFault.
    """
    try:
        # Asked before it is opened: opening a FIFO would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IntegrityError(f"{path} is not a regular file, so it is not opened")
        with open(path, "rb") as handle:
            data = handle.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise explain_os_error(error, path) from error
    if len(data) > limit:
        raise IntegrityError(f"{path} is larger than the {limit:,} bytes such a file may have")
    return data


def write_files(folder: Path, tokenizer: bytes, settings: object, template: str | None) -> None:
    """Write tokenizer.json, tokenizer_config.json and, when there is one, chat_template.jinja."""
    write_file(folder / TOKENIZER_FILE, tokenizer)
    write_file(folder / SETTINGS_FILE, pretty_json(settings))
    if template is not None:
        write_file(folder / TEMPLATE_FILE, template.encode())
