"""Conversations in the format of another family's Jinja template.

The template never sees what people wrote. Each content is stood in for by a mark of private-use
characters; the rendered text is cut at the marks into markup and contents, and only in markup the
tokenizer looks for control tokens. So the markup depends on the roles alone: Jinja runs once for
each sequence of roles. Contents are stripped of outer white space, as in ChatML.

Learned is what the model has to write itself: from where the prompt for the reply ends to the
token that ends the turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from chatbench.conversation import ROLES, Message
from chatbench.errors import IntegrityError, UsageError
from chatbench.text.layout import Encoded, Layout, LayoutEncoder, cut_at_marks, mark, reserved_in
from chatbench.text.template import Rendered

if TYPE_CHECKING:
    from chatbench.text.sandbox import SafeTemplate
    from chatbench.text.tokenizer import Tokenizer

_KEPT_LAYOUTS = 512
_AT_ONCE = 256
# Each costs a rendering of what comes before it.
_MOST_BORDERS = 256
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Different enough that what all have in common is markup.
_PROBES = ("a", "茶", "7", "!", "Z z", "𝄞")


class Planned(NamedTuple):
    """The layout of a sequence of roles; `borders[k]` is the layout of the prompt for reply k,
    which the layout begins with."""

    layout: Layout
    borders: Mapping[int, Layout]


class Foreign:
    """A chat template in Jinja, with the tokenizer it was made for."""

    def __init__(self, tokenizer: Tokenizer, source: str, name: str) -> None:
        """Raises IntegrityError for a template that cannot be used safely."""
        from chatbench.text.sandbox import SafeTemplate

        if reserved_in(source):
            raise IntegrityError("the chat template holds characters that mark contents here")
        self.name = name
        self.source = source
        self._tokenizer = tokenizer
        self._jinja: SafeTemplate = SafeTemplate(source)
        self._tokens = named_tokens(tokenizer.settings)
        self._planned = lru_cache(maxsize=_KEPT_LAYOUTS)(self._plan)
        self._refused = lru_cache(maxsize=_KEPT_LAYOUTS)(self._refusal)
        self._prompts = lru_cache(maxsize=_KEPT_LAYOUTS)(self._prompt_layout)
        self._encoder = LayoutEncoder(tokenizer)

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> Iterable[Rendered]:
        """Each conversation. Raises UsageError when the template refuses its turns or leaves a
        content out, IntegrityError when the template goes beyond what it may do."""
        for begin in range(0, len(conversations), _AT_ONCE):
            some = [self._written(messages) for messages in conversations[begin : begin + _AT_ONCE]]
            plans = [self._planned(_roles(messages)) for messages in some]
            encoded = self._encoder.encode_batch(
                [
                    (plan.layout, _contents(messages), list(plan.borders.values()))
                    for messages, plan in zip(some, plans, strict=True)
                ]
            )
            yield from map(self._weighted, some, plans, encoded)

    def refusal(self, messages: Sequence[Message]) -> str | None:
        """Why the template does not take these turns, in words; None when it does. Raises
        IntegrityError as `render_batch` does."""
        return self._refused(_roles(self._written(messages)))

    def _refusal(self, roles: tuple[str, ...]) -> str | None:
        try:
            self._planned(roles)
        except UsageError as error:
            return error.message
        return None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the reply is written; what `render_batch` gives begins with them."""
        messages = self._written(messages)
        roles = _roles(messages)
        layout = self._prompts(roles)
        borders = list(self._borders(roles, layout).values())
        return self._encoder.encode(layout, _contents(messages), borders).ids

    def _written(self, messages: Sequence[Message]) -> Sequence[Message]:
        """`messages` without an empty system turn that would be joined to the first question."""
        empty = _roles(messages)[:2] == ("system", "user") and not messages[0].content.strip()
        return messages[1:] if empty and self._joins_system else messages

    def _weighted(self, messages: Sequence[Message], plan: Planned, encoded: Encoded) -> Rendered:
        begins = dict(zip(plan.borders, encoded.borders, strict=True))
        weights = [0] * len(encoded.ids)
        for place in encoded.places:
            message = messages[place.message]
            if message.role != "assistant" or not message.weight:
                continue
            begin, end = encoded.reply(place, self._tokenizer.stops)
            begin = begins.get(place.message, begin)
            weights[begin:end] = [1] * (end - begin)
        # Nothing comes before it that it could be learned from.
        weights[:1] = [0] * len(weights[:1])
        return Rendered(encoded.ids, weights)

    @cached_property
    def user_turn(self) -> tuple[int, ...]:
        """The ids that open a person's turn after a reply, from its first control token where it
        has one; empty when the template shows no such ids."""
        openings = [self._opening(probe) for probe in _PROBES]
        common = [
            column[0]
            for column in takewhile(lambda c: len(set(c)) == 1, zip(*openings, strict=False))
        ]
        controls = [n for n, token in enumerate(common) if token in self._tokenizer.control_ids]
        return tuple(common[controls[0] :] if controls else common)

    def _opening(self, content: str) -> list[int]:
        """The ids between a reply's end and this content of the next turn."""
        turns = [Message("user", "a"), Message("assistant", "b"), Message("user", content)]
        try:
            layout = self._planned(_roles(turns)).layout
        except UsageError:
            return []
        encoded = self._encoder.encode(layout, _contents(turns), [])
        reply, asked = encoded.places[-2:]
        return encoded.ids[encoded.reply(reply, self._tokenizer.stops)[1] : encoded.first(asked)]

    @property
    def turn_start(self) -> int | None:
        """The control token that a person's turn opens with."""
        first = self.user_turn[:1]
        return first[0] if first and first[0] in self._tokenizer.control_ids else None

    # Layouts of roles.

    def _plan(self, roles: tuple[str, ...]) -> Planned:
        layout = self.layout(roles, opened=False)
        return Planned(layout, self._borders(roles, layout))

    def _borders(self, roles: tuple[str, ...], layout: Layout) -> dict[int, Layout]:
        """The layout of the prompt for each reply, when `layout` begins with it. Templates that
        write a turn differently once others follow have replies without one."""
        found: dict[int, Layout] = {}
        replies = [number for number, role in enumerate(roles) if role == "assistant"]
        for reply in replies[:_MOST_BORDERS]:
            try:
                prompt = self._prompts(roles[:reply])
            except UsageError:
                continue
            if prompt.begins(layout):
                found[reply] = prompt
        return found

    def _prompt_layout(self, roles: tuple[str, ...]) -> Layout:
        opened = self.layout(roles, opened=True)
        closed = self.layout(roles, opened=False)
        if opened != closed:
            return opened
        # The template does not know of opened replies: what it writes before a reply opens it.
        # Blanks at its end stay with the reply, as they do in the tokens of words.
        try:
            answered = self.layout((*roles, "assistant"), opened=False)
        except UsageError:
            return opened
        return closed.until(len(roles), answered) if closed.begins(answered) else opened

    def layout(self, roles: tuple[str, ...], *, opened: bool) -> Layout:
        """What the template writes around the contents of these turns; `opened` with the beginning
        of a reply. Raises UsageError where it does not take them."""
        joined = self._joins_system and roles[:2] == ("system", "user")
        return self._cut(roles, opened=opened, joined=joined)

    @cached_property
    def _joins_system(self) -> bool:
        """Whether a system turn has to be written in front of the first question, because the
        template refuses it or leaves it out in some places."""
        for roles, opened in ((("system", "user"), True), (("system", "user", "assistant"), False)):
            try:
                self._cut(roles, opened=opened, joined=False)
            except UsageError:
                return True
        return False

    def _cut(self, roles: tuple[str, ...], *, opened: bool, joined: bool) -> Layout:
        from chatbench.text.sandbox import Refusal

        turns = [{"role": role, "content": mark(number)} for number, role in enumerate(roles)]
        if joined:
            turns[:2] = [{"role": "user", "content": f"{mark(0)}\n\n{mark(1)}"}]
        try:
            text = self._jinja.render(turns, self._tokens, add_generation_prompt=opened)
        except Refusal as refusal:
            raise UsageError(
                f"the chat template does not take the turns {_shown(roles)}: {refusal}",
                hint="change the conversation, or give another --template",
            ) from None
        layout = cut_at_marks(text, len(roles))
        missing = [role for number, role in enumerate(roles) if number not in layout.messages()]
        if missing:
            raise UsageError(
                f"the chat template leaves out the {missing[0]} turn of {_shown(roles)}",
                hint="change the conversation, or give another --template",
            )
        return layout


def _roles(messages: Sequence[Message]) -> tuple[str, ...]:
    roles = tuple(message.role for message in messages)
    if not set(roles) <= set(ROLES):
        raise UsageError(f"a role is none of {', '.join(ROLES)}")
    return roles


def _contents(messages: Sequence[Message]) -> list[str]:
    return [message.content.strip() for message in messages]


def _shown(roles: tuple[str, ...]) -> str:
    shown = ", ".join(roles[:6])
    return f"{shown}, ..." if len(roles) > 6 else shown


def named_tokens(settings: Mapping[str, object]) -> dict[str, str]:
    """bos_token and the like, where tokenizer_config.json has them: as text, or with flags."""
    found: dict[str, str] = {}
    for name in _NAMED:
        value = settings.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str) and not re.search("[\ud800-\udfff]", value):
            found[name] = value
    return found
