"""Settings from flags, environment, file and defaults, each value knowing where it came from."""

from __future__ import annotations

import json
import os
import tomllib
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from chatbench.errors import UsageError, did_you_mean

S = TypeVar("S", bound=msgspec.Struct)
ENVIRONMENT_PREFIX = "CHATBENCH_"
# The source of a setting that has no default and was not given.
REQUIRED = "(required)"


def dashed(name: str) -> str:
    """`learning_rate` → `learning-rate`, `continue_` → `continue`."""
    return name.rstrip("_").replace("_", "-")


class Leaf(msgspec.Struct, frozen=True):
    """One setting: its dotted key, its declared type, what it says about itself."""

    key: str
    annotation: Any
    default: Any

    @property
    def field(self) -> str:
        return self.key.rsplit(".", 1)[-1]

    @property
    def name(self) -> str:
        """What its flag is called, with underscores: most often as the field."""
        extra = (self.meta and self.meta.extra) or {}
        return str(extra.get("called") or self.field)

    @property
    def is_flag(self) -> bool:
        """Whether it has a place on the command line."""
        return self.meta is not None and self.meta.extra is not None

    @property
    def spelled(self) -> str:
        """How a person gives it: its flag, or its key where it has none."""
        return f"--{dashed(self.name)}" if self.is_flag else self.key

    def of(self, settings: msgspec.Struct) -> Any:
        """Its value."""
        value: Any = settings
        for part in self.key.split("."):
            value = getattr(value, part)
        return value

    @property
    def _declared(self) -> Any:
        """The annotation without `| None`."""
        arguments = typing.get_args(self.annotation)
        if type(None) in arguments:
            return next(a for a in arguments if a is not type(None))
        return self.annotation

    @property
    def meta(self) -> msgspec.Meta | None:
        extras = getattr(self._declared, "__metadata__", ())
        return next((e for e in extras if isinstance(e, msgspec.Meta)), None)

    @property
    def plain_type(self) -> Any:
        """The type without None and without Annotated."""
        declared = self._declared
        if typing.get_origin(declared) is typing.Annotated:
            return typing.get_args(declared)[0]
        return declared

    @property
    def takes_one(self) -> bool:
        """Whether a text stands for a list of it: where a list has to be given."""
        return self.plain_type == list[str] and self.default is msgspec.NODEFAULT


class Resolved(msgspec.Struct, Generic[S]):
    settings: S
    sources: dict[str, str]


@lru_cache
def leaves(settings_type: type[msgspec.Struct]) -> tuple[Leaf, ...]:
    """Every setting of a (nested) settings struct, in the order of its text."""
    return tuple(_leaves(settings_type, ""))


def _leaves(settings_type: type[msgspec.Struct], prefix: str) -> Iterator[Leaf]:
    hints = typing.get_type_hints(settings_type, include_extras=True)
    for field in msgspec.structs.fields(settings_type):
        annotation = hints[field.name]
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            yield from _leaves(annotation, f"{prefix}{field.name}.")
            continue
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        yield Leaf(prefix + field.name, annotation, default)


def resolve(
    settings_type: type[S],
    *,
    flags: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    overrides: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    verb: str = "",
    verbs: Collection[str] = (),
    incomplete: bool = False,
) -> Resolved[S]:
    """Flag (or --set) over environment over file over default; of a file with a table for each of
    several `verbs`, the one of `verb`. Raises UsageError; `incomplete`: not for what is required
    and not given, which is empty then and comes from REQUIRED."""
    known = {leaf.key: leaf for leaf in leaves(settings_type)}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")

    def take(entries: Mapping[str, Any], source: str) -> None:
        for key, value in entries.items():
            if key not in known:
                raise UsageError(
                    f"unknown setting {key} in {source}", hint=did_you_mean(key, list(known))
                )
            alone = isinstance(value, str) and known[key].takes_one
            values[key] = [value] if alone else value
            sources[key] = source

    if config_file is not None:
        tree, source = _table_of(verb, verbs, _read_toml(config_file), config_file)
        _check_tables(tree, known, verbs if source == str(config_file) else (), source)
        take(_flatten(tree, frozenset(known)), source)
    take(_from_environment(known, os.environ if environ is None else environ), "environment")
    take(_from_overrides(known, overrides or []), "--set")
    take({key: value for key, value in (flags or {}).items() if value is not None}, "flag")
    if incomplete:
        missing = (leaf for leaf in known.values() if leaf.default is msgspec.NODEFAULT)
        take({leaf.key: leaf.plain_type() for leaf in missing if leaf.key not in values}, REQUIRED)
    return Resolved(_build(settings_type, values, sources), sources)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Some editors put a byte order mark first, which TOML does not know.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint="give -c the path of a TOML file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _table_of(
    verb: str, verbs: Collection[str], tree: dict[str, Any], path: Path
) -> tuple[dict[str, Any], str]:
    """The settings of `verb` and where they stand: a recipe has a table for each verb it uses."""
    tables = [key for key in tree if key in verbs and isinstance(tree[key], dict)]
    if not tables:
        return tree, str(path)
    beside = next((key for key in tree if key not in tables), None)
    if beside is not None:
        told = f"put it under one of them, such as [{tables[0]}]"
        if isinstance(tree[beside], dict):
            told = did_you_mean(beside, list(verbs))
        raise UsageError(f"{beside} stands in {path} beside tables of verbs and is none", hint=told)
    if verb not in tables:
        held = ", ".join(f"[{name}]" for name in tables)
        raise UsageError(f"{path} has no table [{verb}]", hint=f"it has {held}")
    return tree[verb], f"{path} [{verb}]"


def _check_tables(
    tree: Mapping[str, Any], known: Collection[str], verbs: Collection[str], source: str
) -> None:
    """Raises UsageError for a table that is neither a group of settings nor a verb's."""
    groups = {key.partition(".")[0] for key in known}
    for name, value in tree.items():
        if isinstance(value, dict) and name not in groups:
            near = sorted({*groups, *verbs} - {*known})
            raise UsageError(f"unknown table [{name}] in {source}", hint=did_you_mean(name, near))


def _flatten(
    tree: Mapping[str, Any], whole: frozenset[str] = frozenset(), prefix: str = ""
) -> dict[str, Any]:
    """Dotted keys; the tables named in `whole` are values themselves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in whole:
            flat |= _flatten(value, whole, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def environment_name(key: str) -> str:
    """`optim.learning_rate` → `CHATBENCH_OPTIM_LEARNING_RATE`."""
    return ENVIRONMENT_PREFIX + key.replace(".", "_").upper()


def _from_environment(known: Mapping[str, Leaf], environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: _parse_value(leaf, environ[environment_name(key)])
        for key, leaf in known.items()
        if environment_name(key) in environ
    }


def _from_overrides(known: Mapping[str, Leaf], overrides: list[str]) -> dict[str, Any]:
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--set {text} has no '='", hint="write --set key=value")
        parsed[key] = _parse_value(known[key], value.strip()) if key in known else value
    return parsed


def _parse_value(leaf: Leaf, text: str) -> Any:
    if leaf.plain_type is str or typing.get_origin(leaf.plain_type) is typing.Literal:
        return text
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # A name may look like a number.
    named = leaf.takes_one and not isinstance(value, list | str)
    return text if named else value


def _build(settings_type: type[S], values: Mapping[str, Any], sources: Mapping[str, str]) -> S:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    try:
        return msgspec.convert(tree, settings_type, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        if message.startswith("Object missing required field"):
            name = message.split("`")[1]
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{name} is not given", hint=f"add {flag} (see --help)") from None
        key = path.rstrip("`").split("[")[0]
        where = f" (from {sources[key]})" if key in sources else ""
        choices = _choices(settings_type, key)
        what = "not a choice" if choices else message
        if message.startswith("Expected `array`, got `str`"):
            choices = f"write a list: {json.dumps([values.get(key)], ensure_ascii=False)}"
        raise UsageError(
            f"setting {key}{where}: {what}, got {values.get(key)!r}", hint=choices
        ) from None


def _choices(settings_type: type[msgspec.Struct], key: str) -> str | None:
    """The values to choose from, for a setting that has a fixed few."""
    plain = next((leaf.plain_type for leaf in leaves(settings_type) if leaf.key == key), None)
    fixed = typing.get_origin(plain) is typing.Literal
    return f"one of {', '.join(map(str, typing.get_args(plain)))}" if fixed else None


def to_toml(settings: msgspec.Struct, sources: Mapping[str, str] | None = None) -> str:
    """The settings as TOML that `resolve` reads back; with `sources`, each value says its own.

    Settings that are not set (None) are left out, or shown as comments beside their source.
    """
    import tomli_w

    sections: dict[str, list[str]] = {}
    for leaf in leaves(type(settings)):
        value = leaf.of(settings)
        source = None if sources is None else sources[leaf.key]
        if source is None and value is None:
            continue
        if source == REQUIRED:
            line = f"# {leaf.field} = {REQUIRED}"
        else:
            line = _assignment(leaf.field, value, tomli_w.dumps)
            line += "" if source is None else f"  # {source}"
        section = leaf.key.rpartition(".")[0]
        sections.setdefault(section, []).append(line)
    blocks = [
        "\n".join(([f"[{name}]"] if name else []) + lines) for name, lines in sections.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _assignment(name: str, value: Any, dumps: Callable[[dict[str, Any]], str]) -> str:
    """`name = value`; a table goes on one line, for a header of its own would end the section."""
    if value is None:
        return f"# {name} = (not set)"
    if isinstance(value, dict):
        entries = ", ".join(_assignment(key, entry, dumps) for key, entry in value.items())
        return f"{name} = {{{entries}}}"
    return dumps({name: value}).rstrip("\n")


def differing_keys(one: msgspec.Struct, other: msgspec.Struct) -> dict[str, tuple[Any, Any]]:
    """Settings of the same type that differ, by key."""

    def flat(settings: msgspec.Struct) -> dict[str, Any]:
        return _flatten(msgspec.to_builtins(settings))

    left, right = flat(one), flat(other)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}
