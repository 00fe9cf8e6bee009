"""Which chat template a tokenizer's conversations are written in, and the ones known by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chatbench.errors import UsageError, did_you_mean
from chatbench.text.template import CHAT_TEMPLATE, TURN_END, TURN_START, ChatML, ChatTemplate

if TYPE_CHECKING:
    from chatbench.text.tokenizer import Tokenizer

__all__ = ["NAMES", "TOKENS", "ChatTemplate", "choose_template", "has_template", "template_text"]

_FILE_LIMIT = 1 << 20

# The control tokens that the templates known by name write; the last of them ends a reply.
TOKENS: dict[str, tuple[str, ...]] = {
    "chatml": (TURN_START, TURN_END),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "zephyr": ("</s>",),
    "mistral": ("<s>", "</s>"),
    "plain": (),
}
_LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- (message.content | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
# The marks of the roles are ordinary text in Zephyr's vocabulary.
_ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + (message.content | trim) + '</s>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""
_MISTRAL = """\
{{- '<s>' -}}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('after a system turn, user and assistant must take turns') -}}
{%- elif message.role == 'user' -%}
{{- '[INST] ' + (message.content | trim) + ' [/INST]' -}}
{%- elif message.role == 'assistant' -%}
{{- ' ' + (message.content | trim) + '</s>' -}}
{%- else -%}
{{- raise_exception('there are only turns of user and assistant, and one of system before') -}}
{%- endif -%}
{%- endfor -%}
"""
_PLAIN = """\
{{- BEGIN -}}
{%- for message in messages -%}
{{- (message.role | capitalize) + ': ' + (message.content | trim) -}}
{%- if message.role == 'assistant' -%}
{{- END -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""


def choose_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template the user named, else the tokenizer's own, else ChatML where its tokens are.

    Raises UsageError when there is none or it does not fit, IntegrityError when it is no usable
    Jinja.
    """
    from chatbench.text.foreign_template import Foreign

    if tokenizer.is_native:
        if _joins_pieces(tokenizer):
            return ChatML(tokenizer, tokenizer.turn_start, tokenizer.turn_end)
        return Foreign(tokenizer, CHAT_TEMPLATE, "chatml")
    source = tokenizer.template_source
    if source is None:
        raise UsageError(
            "the model has no chat template",
            hint=f"give --template {'|'.join(NAMES)} or a Jinja file; chat --raw needs none",
        )
    name = source if source in NAMES else "jinja"
    return Foreign(tokenizer, template_text(source, tokenizer), name)


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether conversations can be written, as far as one sees without opening the template."""
    return tokenizer.is_native or tokenizer.template_source is not None


def _joins_pieces(tokenizer: Tokenizer) -> bool:
    """Whether what is encoded piece by piece needs nothing between the pieces: SentencePiece puts
    a blank before each."""
    line_end, word = tokenizer.encode("\n"), tokenizer.encode("a")
    return tokenizer.encode("\na") == [*line_end, *word]


def template_text(given: str, tokenizer: Tokenizer) -> str:
    """Jinja text of what the user or the model's folder gave: a name, a path or the text itself.

    Raises UsageError for a name or path that leads nowhere, and for a named template whose control
    tokens the tokenizer lacks.
    """
    if given in _BUILT:
        return _BUILT[given](tokenizer)
    if "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not os.path.isfile(given):  # Path.is_file raises for what is too long to be a path
        raise UsageError(
            f"{given[:200]} is neither a file nor the name of a chat template",
            hint=did_you_mean(given, [*NAMES]),
        )
    from chatbench.text.tokenizer_files import read_bounded

    data = read_bounded(path, _FILE_LIMIT)
    try:
        return (data or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{given} is not a Jinja file in UTF-8: {error}") from error


def _with_tokens(source: str, name: str) -> Callable[[Tokenizer], str]:
    def build(tokenizer: Tokenizer) -> str:
        for token in TOKENS[name]:
            if token not in tokenizer.controls:
                raise UsageError(
                    f"the tokenizer has no {token}, which this chat template writes",
                    hint="give --template plain, which needs no such tokens; finetune with "
                    f"--template {name} adds them",
                )
        return source

    return build


def _plain(tokenizer: Tokenizer) -> str:
    """`User: ...` in ordinary words, for models that know no tokens for turns; what a person
    writes can therefore look like a turn."""
    names = {number: name for name, number in tokenizer.controls.items()}
    begin = "".join(names[number] for number in tokenizer.text_prefix)
    end = names[tokenizer.end_of_text]
    return _PLAIN.replace("END", _literal(end)).replace("{{- BEGIN", "{{- " + _literal(begin))


def _literal(text: str) -> str:
    """`text` as a string in Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


_BUILT: dict[str, Callable[[Tokenizer], str]] = {
    "chatml": _with_tokens(CHAT_TEMPLATE, "chatml"),
    "llama3": _with_tokens(_LLAMA3, "llama3"),
    "zephyr": _with_tokens(_ZEPHYR, "zephyr"),
    "mistral": _with_tokens(_MISTRAL, "mistral"),
    "plain": _plain,
}
NAMES = tuple(_BUILT)
