"""A settings struct becomes a command: every flag, alias, help text and default from one place."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
import typer

from chatbench import console
from chatbench.config import Leaf, Resolved, dashed, leaves, resolve, to_toml

S = TypeVar("S", bound=msgspec.Struct)
_COMMON = "Settings"


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _long_names(known: dict[str, Leaf]) -> Callable[[str], str]:
    """`learning_rate` and the names people know from other tools → our own; help shows ours."""
    aliases = {
        alias.removeprefix("--"): dashed(leaf.name)
        for leaf in known.values()
        if leaf.meta is not None and leaf.meta.extra is not None
        for alias in leaf.meta.extra["names"]
        if alias.startswith("--")
    }

    def normalise(name: str) -> str:
        own = dashed(name)
        return aliases.get(own, own)

    return normalise


def settings_command(
    app: typer.Typer,
    settings_type: type[S],
    *,
    name: str,
    help: str,
    epilog: str = "",
    positional: str | None = None,
    resumable: bool = False,
) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
    """Register a function of one settings object as a verb.

    `positional` names the list setting that plain arguments fill. A `resumable` verb reads the
    run folder's config.toml when --resume is given without -c.
    """

    def register(body: Callable[[S], None]) -> Callable[[S], None]:
        known = {leaf.name: leaf for leaf in leaves(settings_type)}

        def command(**given: Any) -> None:
            config_file = given.pop("config")
            overrides = given.pop("set_")
            print_config = given.pop("print_config")
            flags = {
                known[name].key: value for name, value in given.items() if value not in (None, [])
            }
            if resumable and flags.get("resume") and config_file is None and flags.get("out"):
                stored = Path(flags["out"], "config.toml")
                config_file = stored if stored.is_file() else None
            resolved = resolve(
                settings_type, flags=flags, config_file=config_file, overrides=overrides,
                verb=name, verbs=[str(other.name) for other in app.registered_commands],
                incomplete=print_config,
            )  # fmt: skip
            if print_config:
                _print_config(resolved)
            else:
                body(resolved.settings)

        parameters = [_argument(known[positional])] if positional else []
        parameters += [_option(leaf) for leaf in known.values() if leaf.is_flag]
        parameters += _common_options()
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        context = {**CONTEXT, "token_normalize_func": _long_names(known)}
        app.command(name, help=help, epilog=epilog or None, context_settings=context)(command)
        return body

    return register


def _option(leaf: Leaf) -> inspect.Parameter:
    meta = leaf.meta
    assert meta is not None
    assert meta.extra is not None
    main = leaf.spelled
    kind = leaf.plain_type
    shown: str | bool = False
    if leaf.default is not msgspec.NODEFAULT and leaf.default not in (None, [], False):
        shown = str(leaf.default)
    if kind is bool:
        names = [f"{main}/--no-{dashed(leaf.name)}" if leaf.default else main]
        shown = "on" if leaf.default else False
    else:
        names = [main, *(n for n in meta.extra["names"] if not n.startswith("--"))]
    option = typer.Option(
        *names,
        help=meta.description,
        rich_help_panel=meta.extra["panel"],
        show_default=shown,
        metavar=_metavar(kind),
    )
    return _parameter(leaf.name, Annotated[_typer_type(kind) | None, option])


def _argument(leaf: Leaf) -> inspect.Parameter:
    meta = leaf.meta
    assert meta is not None
    argument = typer.Argument(help=meta.description, metavar="INPUT...", show_default=False)
    return _parameter(leaf.name, Annotated[list[str] | None, argument])


def _typer_type(kind: Any) -> Any:
    return str if get_origin(kind) is Literal else kind


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "X", str: "TEXT", list[str]: "TEXT"}.get(kind)


def _common_options() -> list[inspect.Parameter]:
    option = typer.Option
    return [
        _parameter(
            "config",
            Annotated[
                Path | None,
                option("-c", "--config", help="TOML file of settings", metavar="FILE",
                       rich_help_panel=_COMMON, show_default=False),
            ],
        ),
        _parameter(
            "set_",
            Annotated[
                list[str] | None,
                option("--set", help="Any setting, such as optim.momentum=0.9; repeatable",
                       metavar="KEY=VALUE", rich_help_panel=_COMMON, show_default=False),
            ],
        ),
        _parameter(
            "print_config",
            Annotated[
                bool,
                option("--print-config", help="Show every setting and where it came from, then end",
                       rich_help_panel=_COMMON),
            ],
            default=False,
        ),
    ]  # fmt: skip


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _print_config(resolved: Resolved[Any]) -> None:
    console.emit(to_toml(resolved.settings, resolved.sources), end="")


def command_line(verb: str, settings: msgspec.Struct, positional: str | None = None) -> str:
    """The shell command that gives these settings; defaults are left out."""
    words = ["chatbench", verb]
    for leaf in leaves(type(settings)):
        value = leaf.of(settings)
        if leaf.name == positional:
            words += value
        elif value != leaf.default:
            words += _words(leaf, value)
    return shlex.join(words)


def _words(leaf: Leaf, value: Any) -> list[str]:
    if not leaf.is_flag:
        return ["--set", f"{leaf.key}={value}"]
    name = leaf.spelled
    if isinstance(value, bool):
        return [name if value else f"--no-{dashed(leaf.name)}"]
    if isinstance(value, list):
        return [word for entry in value for word in (name, str(entry))]
    return [name, str(value)]
