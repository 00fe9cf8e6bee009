"""What a setting is: type, range, help, flags; and what all groups of settings share."""

from typing import Any

import msgspec
from msgspec import Meta, Struct


def flag(
    help: str, *names: str, panel: str = "Main", called: str | None = None, **bounds: Any
) -> Meta:
    """Say what a setting is; `names` are short forms and aliases besides `--its-name`, `bounds`
    its range as ge, gt, le, lt. `called`: the flag's own name, where that of the field says too
    little outside of its group."""
    extra = {"names": names, "panel": panel, "called": called}
    return Meta(description=help, extra=extra, **bounds)


def knob(help: str, **bounds: Any) -> Meta:
    """A setting for the TOML file and --set only."""
    return Meta(description=help, **bounds)


LARGEST_SEED = 2**62


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings: unknown keys are errors."""


def replace(settings: Any, **changes: Any) -> Any:
    """A copy of `settings` with other values, checked like any input."""
    return msgspec.convert(msgspec.to_builtins(settings) | changes, type(settings))
