"""Renders a stranger's chat template so that it can neither reach, nor stop, nor fill anything.

A template arrives with every model of other people: it is a program. It is read into Jinja's
syntax tree, from which every construct that is not needed is refused; what is left is charged for
each step (metering.py). Python's own attributes, modules and files cannot be named at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import isfinite
from threading import Lock
from types import BuiltinMethodType, MethodType
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from chatbench.errors import IntegrityError
from chatbench.text.metered_filters import metered_filters, metered_tests
from chatbench.text.metering import (
    Meter,
    Names,
    Overspent,
    check_attribute,
    check_braces,
    check_method,
    check_operation,
    fixed_date,
    plain_dict,
    small_range,
    weigh,
)

LONGEST_SOURCE = 1 << 16  # characters
_MOST_TOKENS = 20_000
_ALLOWED = frozenset(
    (
        nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef,
        nodes.For, nodes.If, nodes.Break, nodes.Continue, nodes.With, nodes.Scope,
        nodes.Macro, nodes.CallBlock, nodes.Call, nodes.Keyword,
        nodes.Assign, nodes.AssignBlock, nodes.FilterBlock,
        nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Slice,
        nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test, nodes.CondExpr,
        nodes.Compare, nodes.Operand, nodes.Concat, nodes.And, nodes.Or, nodes.Not,
        nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow,
        nodes.Neg, nodes.Pos,
    )
)  # fmt: skip
_PRINTABLE = (str, int, float, type(None), Undefined, list, tuple, dict, Names)


class Refusal(Exception):
    """The template does not render this conversation; the words are the template's own."""


class _Raised(TemplateError):
    """What `raise_exception` of a template throws."""


def _raise_exception(words: object = "") -> None:
    raise _Raised(str(words))


@pass_context
def _printed(context: Context, value: Any) -> str:
    """What is written for `value`. That it wants the context keeps Jinja from computing it while
    it compiles, where nothing is charged."""
    environment = context.environment
    assert isinstance(environment, Sandbox)
    return environment.written(value)


class _Generation(Extension):
    """`{% generation %}` marks replies in some templates; replies are found without it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, with a meter in every step."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants would be computed while compiling, where nothing counts
            finalize=_printed,
            cache_size=0,
            extensions=[_Generation, loopcontrols],
        )
        self.meter = Meter(0)
        self.filters = metered_filters(self)
        self.tests = metered_tests(self, self.tests)
        self._functions = {
            "range": small_range,
            "dict": plain_dict,
            "namespace": Names,
            "raise_exception": _raise_exception,
        }
        self.globals = dict(self._functions)

    def offer_date(self) -> None:
        """Define strftime_now, for templates that do not ask whether it is there."""
        self._functions["strftime_now"] = self.globals["strftime_now"] = fixed_date

    # What the rewritten tree calls.

    def written(self, value: Any) -> str:
        """`value` as text, charged."""
        if not isinstance(value, _PRINTABLE):
            raise SecurityError(f"prints a {type(value).__name__}")
        self.meter.admit(value)
        return value if type(value) is str else str(value)

    def joined(self, *values: Any) -> str:
        """`a ~ b ~ c`."""
        self.meter.fits(sum(map(weigh, values)))
        return "".join(map(self.written, values))

    def admitted(self, value: Any) -> Any:
        return self.meter.admit(value)

    def iterated(self, value: Any) -> list[Any]:
        return self.meter.iterate(value)

    # What Jinja calls in a sandbox.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(self.meter, operator, left, right)
        return self.meter.admit(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.look()
        if attribute.startswith("_"):
            raise SecurityError(f"asks for the private attribute {attribute}")
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)  # raises, with Jinja's words
        if isinstance(obj, Namespace):
            return super().getattr(obj, attribute)
        if hasattr(type(obj), attribute):
            check_attribute(obj, attribute)
            return getattr(obj, attribute)
        try:
            return obj[attribute]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.charge(weigh(argument))
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                return self.getattr(obj, argument)
            return self.undefined(obj=obj, name=argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None) if isinstance(obj, MethodType) else None
        if owner is self:
            return obj(*args)
        self.meter.call()
        if isinstance(obj, Undefined):
            return obj(*args)  # raises, with Jinja's words
        if isinstance(obj, Macro):
            return self.meter.admit(context.call(obj, *args, **kwargs))
        # Jinja's own notes for functions that want the context.
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        if isinstance(obj, BuiltinMethodType):
            return self._call_method(obj, args, kwargs)
        if isinstance(owner, LoopContext) or obj in self._functions.values():
            self.meter.charge(weigh(args) + weigh(kwargs))
            return self.meter.admit(obj(*args, **kwargs))
        raise SecurityError(f"calls a {type(obj).__name__}")

    def _call_method(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner, name = method.__self__, method.__name__
        check_attribute(owner, name)
        if name == "format":
            check_braces(self.meter, owner, (*args, kwargs))
        else:
            check_method(self.meter, owner, name, (*args, *kwargs.values()))
        return self.meter.admit(method(*args, **kwargs))


class _Metered(NodeTransformer):
    """Refuses what is not needed, and has every step that can grow call the sandbox."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node) not in _ALLOWED:
            raise SecurityError(f"uses {type(node).__name__}")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("uses a recursive loop")
        self.generic_visit(node)
        node.iter = _calling("iterated", node.iter)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        # Python has no literal for what lies beyond the largest number: `1e999` becomes a name.
        if isinstance(node.value, float) and not isfinite(node.value):
            raise SecurityError("computes with huge numbers")
        weigh(node.value)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # Only what is computed is charged, and a loop can write a constant many times.
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _calling("joined", *node.nodes)

    def visit_Literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _calling("admitted", node)

    visit_Tuple = visit_List = visit_Dict = visit_Literal

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        # Jinja cuts slices by itself.
        return _calling("admitted", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _calling("admitted", node.expr)
        for operand in node.ops:
            operand.expr = _calling("admitted", operand.expr)
        return node


def _calling(name: str, *arguments: nodes.Node) -> nodes.Call:
    return nodes.Call(
        nodes.EnvironmentAttribute(name), cast(list[nodes.Expr], [*arguments]), [], None, None
    )


class SafeTemplate:
    """A chat template, ready to render; safe to share between threads."""

    def __init__(self, source: str) -> None:
        """Raises IntegrityError for a template that is no Jinja, or asks for what none needs."""
        if len(source) > LONGEST_SOURCE:
            raise _broken(f"is longer than {LONGEST_SOURCE:,} characters")
        self._sandbox = Sandbox()
        self._lock = Lock()
        try:
            self._template = _compile(self._sandbox, source)
        except SecurityError as error:
            raise _broken(_words(error)) from None
        except TemplateSyntaxError as error:
            raise _broken(f"cannot be read: {_words(error)}") from None
        except (RecursionError, MemoryError, SyntaxError):
            raise _broken("is nested too deeply") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
            raise _broken(f"cannot be compiled: {_words(error)}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        tokens: Mapping[str, str],
        *,
        add_generation_prompt: bool,
    ) -> str:
        """The text of a conversation.

        Raises Refusal when the template does not want it, IntegrityError when the template wants
        more time, memory or reach than it may have.
        """
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **tokens,
        }
        with self._lock:
            self._sandbox.meter = Meter(len(messages))
            try:
                return _concatenated(self._template, variables)
            except SecurityError as error:
                raise _broken(_words(error)) from None
            except (RecursionError, MemoryError):
                raise _broken("calls itself without end") from None
            except _Raised as error:
                raise Refusal(_words(error)) from None
            except (
                TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError
            ) as error:  # fmt: skip
                raise Refusal(_words(error)) from None


def _compile(sandbox: Sandbox, source: str) -> Template:
    if sum(1 for _ in islice(sandbox.lex(source), _MOST_TOKENS + 1)) > _MOST_TOKENS:
        raise Overspent(f"has more than {_MOST_TOKENS:,} tokens")
    tree = sandbox.parse(source)
    if not _asks_for_date(tree) and "strftime_now" in source:
        sandbox.offer_date()
    tree = _Metered().visit(tree)
    code = sandbox.compile(tree)
    return sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))


def _asks_for_date(tree: nodes.Template) -> bool:
    """Whether the template does without strftime_now where there is none."""
    return any(
        test.name == "defined"
        and isinstance(test.node, nodes.Name)
        and test.node.name == "strftime_now"
        for test in tree.find_all(nodes.Test)
    )


def _concatenated(template: Template, variables: dict[str, Any]) -> str:
    pieces: Iterable[str] = template.root_render_func(template.new_context(variables))
    return "".join(pieces)


def _words(error: Exception) -> str:
    """What an error says, cut short and on one line; control characters are drawn."""
    from chatbench.console import visible

    return visible(" ".join(str(error).split()))[:200]


def _broken(what: str) -> IntegrityError:
    return IntegrityError(
        f"the chat template {what}",
        hint="give another with --template: chatml, llama3, zephyr, mistral, plain or a Jinja file",
    )
