"""Slash commands that change how replies are made, and that show what is set."""

from __future__ import annotations

import msgspec

from chatbench.chat.commands_tree import excerpt
from chatbench.chat.session import ChatSession, View
from chatbench.chat.spoken import Reply
from chatbench.config import leaves
from chatbench.conversation import Message
from chatbench.errors import UsageError, did_you_mean
from chatbench.settings import SamplingSettings, replace
from chatbench.text.tags import said, unlearned

TAG = "tag."
_BAR = 40
_NOTHING_NOTED = "nothing is noted of tags the model has learned"
_ALIASES = {
    alias.removeprefix("--"): leaf.name
    for leaf in leaves(SamplingSettings)
    if leaf.meta is not None and leaf.meta.extra is not None
    for alias in leaf.meta.extra["names"]
    if alias.startswith("--")
}
_SWITCHES = {"on": True, "true": True, "off": False, "false": False}


def system(session: ChatSession, argument: str) -> Reply:
    """TEXT: set the system prompt and start over; alone: show it; `clear`: remove it"""
    if not argument:
        return f"system: {session.system or '(none)'}"
    session.system = None if argument == "clear" else argument
    session.clear()
    return "system prompt removed" if session.system is None else "system prompt set"


def names() -> list[str]:
    """What /set can change, tags aside."""
    return [*SamplingSettings.__struct_fields__, *View.__struct_fields__]


def set_(session: ChatSession, argument: str) -> Reply:
    """NAME VALUE: such as temperature 0.3, quiet on, tag.style formal; alone: show all"""
    argument = argument.removeprefix("parameter").strip() if _says_parameter(argument) else argument
    if not argument:
        return parameters(session)
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    text = text.strip()
    if name.startswith(TAG):
        return _set_tag(session, *_tag_of(session, argument.removeprefix(TAG)))
    name = _ALIASES.get(name, name).replace("-", "_")
    if name in View.__struct_fields__:
        if text not in ("", *_SWITCHES):
            raise UsageError(f"{name} {text}: neither on nor off", hint=f"/set {name} on")
        setattr(session.view, name, _SWITCHES.get(text, True))
        return f"{name} {_shown(getattr(session.view, name))}"
    if name not in SamplingSettings.__struct_fields__:
        raise UsageError(f"there is no setting {name}", hint=did_you_mean(name, names()))
    try:
        session.sampling = replace(session.sampling, **{name: _value(session, name, text)})
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} {text}: {str(error).partition(' - at')[0]}") from None
    return f"{name} {getattr(session.sampling, name)}"


def _says_parameter(argument: str) -> bool:
    return argument.split(maxsplit=1)[:1] == ["parameter"]


def _value(session: ChatSession, name: str, text: str) -> object:
    """What was typed, as the setting takes it. Raises UsageError."""
    if name == "stop":
        return [text] if text else []
    if name == "logit_bias":
        if text in ("", "none"):
            return {}
        token, _, bias = text.rpartition(" ")
        if not token.strip():
            raise UsageError("logit_bias takes a token and a number", hint="/set logit_bias 茶 -5")
        return session.sampling.logit_bias | {token.strip(): _number(bias)}
    return None if text in ("none", "") else _number(text)


def _number(value: str) -> object:
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return value


def tags(session: ChatSession, argument: str) -> Reply:
    """NAME VALUE: answer under a tag, such as style formal, or /style formal; alone: show all"""
    if argument:
        return _set_tag(session, *_tag_of(session, argument))
    known = session.known_tags
    lines = [f"{name}: {value}" for name, value in session.tags.items()] or ["no tag is set"]
    for name, values in known.items():
        counted = ", ".join(f"{value} ({count:,})" for value, count in values.items())
        lines.append(f"the model has learned {name}: {counted}")
    return "\n".join(lines if known else [*lines, _NOTHING_NOTED])


def _tag_of(session: ChatSession, typed: str) -> tuple[str, str]:
    """`style formal` or `style=formal`; names that the model has learned may hold spaces."""
    for name in sorted(session.known_tags, key=len, reverse=True):
        if typed == name or typed.startswith((f"{name} ", f"{name}=")):
            return name, typed[len(name) + 1 :].strip().removeprefix("=").strip()
    name, _, text = typed.replace("=", " ", 1).partition(" ")
    return name, text.strip()


def _set_tag(session: ChatSession, name: str, text: str) -> Reply:
    known = session.known_tags
    if not name or not name.isprintable() or (":" in name and name not in known):
        raise UsageError(f"tag.{name} names no tag", hint="/set tag.style formal")
    value = None if text == "none" else said(text)
    session.put_tags({name: value})
    if value is None:
        return f"tag {name} removed"
    told = unlearned({name: value}, known) if known else [_NOTHING_NOTED]
    return "\n".join([f"{name}: {value}", *told])


def _shown(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


# ---- show


def show(session: ChatSession, argument: str) -> Reply:
    """info, parameters, system, template, context, tokens or messages; alone: info"""
    what = argument or "info"
    if what not in SHOWN:
        raise UsageError(f"there is no /show {what}", hint=did_you_mean(what, list(SHOWN)))
    return SHOWN[what](session)


def info(session: ChatSession) -> str:
    """The model, how full its context is, the system prompt, where the session is kept."""
    config = session.opened.model.config
    lines = [
        f"model {session.folder}",
        f"layers {config.n_layers}, width {config.hidden_size}, vocabulary {config.vocab_size}",
        f"context {session.used} of {session.context} tokens",
        f"system {session.system or '(none)'}",
    ]
    lines += [f"tag {name}: {value}" for name, value in session.tags.items()]
    if session.file is None:
        lines.append("session (not kept)")
    elif session.file.name:
        lines.append(f"session {session.file.path}, branch {session.conversation.current}")
    return "\n".join(lines)


def parameters(session: ChatSession) -> str:
    values = msgspec.to_builtins(session.sampling) | msgspec.to_builtins(session.view)
    lines = [f"{name} {_shown(value)}" for name, value in values.items()]
    return "\n".join([*lines, *(f"{TAG}{name} {value}" for name, value in session.tags.items())])


def system_turn(session: ChatSession) -> str:
    """The system turn as the model reads it, tags included."""
    opening = session.opening()
    return opening[0].content if opening else "(none)"


def template(session: ChatSession) -> str:
    made = session.opened.tokenizer.template
    return f"{made.name}\n{made.source}"


def context(session: ChatSession) -> str:
    """A bar of how full the window is, and what fills it."""
    filled = min(_BAR, -(-_BAR * session.used // session.context))
    bar = "#" * filled + "." * (_BAR - filled)
    opening = session.tokens(session.opening()) - session.tokens([]) if session.opening() else 0
    exchanges = sum(m.role == "user" for m in session.messages)
    left_out = min(session.left_out, exchanges)
    return "\n".join([
        f"[{bar}] {session.used} of {session.context} tokens",
        f"system turn {opening}, kept free for a reply {session.context - session.room()}",
        f"exchanges {exchanges - left_out} in the window, {left_out} left out",
    ])  # fmt: skip


def tokens(session: ChatSession) -> str:
    """The messages cut as the model reads them."""
    tokenizer = session.opened.tokenizer
    lines = []
    for message in [*session.opening(), *session.messages]:
        text = message.content.strip()
        ids = tokenizer.encode(text)
        pieces = [_spelled(tokenizer.token_bytes[number]) for number in ids]
        lines.append(f"{message.role} {len(ids)}: {'|'.join(pieces)}")
    return "\n".join(lines) or "nothing was said yet"


def _spelled(data: bytes) -> str:
    """A token's text on one line; bytes that are no whole character as \\xNN."""
    return data.decode("utf-8", errors="backslashreplace").replace("\n", "\\n")


def messages(session: ChatSession) -> str:
    """The current path with the numbers that /edit takes."""
    path = session.conversation.path()
    lines = []
    for number, turn in enumerate(path, 1):
        marks = [" [stopped]"] if turn.stopped else []
        marks += [] if turn.good is None else [" [good]" if turn.good else " [bad]"]
        said: Message = turn.message
        lines.append(f"{number} {said.role}: {excerpt(said.content)}{''.join(marks)}")
    return "\n".join(lines) or "nothing was said yet"


SHOWN = {
    "info": info,
    "parameters": parameters,
    "system": system_turn,
    "template": template,
    "context": context,
    "tokens": tokens,
    "messages": messages,
}
