"""Slash commands that judge: how sure the model was, what another says, what the person thinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chatbench.chat.display import Shown, Span, bucket
from chatbench.chat.interrupt import interruptible
from chatbench.chat.preferences import Judged, preferences_path, record
from chatbench.chat.session import ChatSession
from chatbench.chat.spoken import Reply, typed_path, whole_number
from chatbench.chat.tree import Turn
from chatbench.engine.engine import Completion, Engine, Request, TokenLogprob
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.text.template import reply_prompt

LEAST_CERTAIN = 5
# What is told as 99 % or more left no real choice.
_CERTAIN = math.log(0.985)
ALTERNATIVES = 4


# ---- why


def why(session: ChatSession, argument: str) -> Reply:
    """the last reply, each token by its probability; alternatives where it was least certain"""
    tokens = explained(session)
    if not tokens:
        raise UsageError("the last reply is empty", hint="/retry answers anew")
    spans = token_spans(tokens)
    unsure = sorted((t for t in tokens if t.logprob < _CERTAIN), key=lambda t: t.logprob)
    spans.append(Span("\n\nleast certain:\n" if unsure else "\n\nall certain\n", "dim"))
    for token in unsure[:LEAST_CERTAIN]:
        spans += _alternatives(token)
    return Shown([spans], [f"{len(tokens)} tokens by probability"])


def explained(session: ChatSession) -> list[TokenLogprob]:
    """The figures of the last reply. Raises UsageError when there is none.

    A reply that was made in this chat keeps its own ids; one that was loaded is encoded again.
    """
    turn = session.conversation.last_reply()
    trace = session.trace
    if trace is not None and trace.turn == turn.id:
        prompt, reply = trace.prompt, trace.reply
    else:
        before = session.conversation.messages(turn.parent)
        prompt, _ = session.fit(before)
        reply = session.opened.tokenizer.encode(turn.message.content)
        reply = reply[: session.context - len(prompt)]
    if not reply:
        return []
    return session.engine.explain([*prompt, *reply], len(prompt), ALTERNATIVES)


def token_spans(tokens: Sequence[TokenLogprob]) -> list[Span]:
    """A span for each token; tokens that make one character together are one span, as likely as
    all of them in a row."""
    spans: list[Span] = []
    held, logprob = b"", 0.0
    for number, token in enumerate(tokens):
        held += bytes(token.bytes)
        logprob += token.logprob
        if not token.bytes:  # a control token has a name and no bytes
            spans.append(_span(token.text, token.logprob))
            held, logprob = b"", 0.0
        elif number == len(tokens) - 1 or not _is_cut(held):
            spans.append(_span(held.decode("utf-8", errors="backslashreplace"), logprob))
            held, logprob = b"", 0.0
    return spans


def _is_cut(data: bytes) -> bool:
    """Whether `data` ends inside a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _span(text: str, logprob: float) -> Span:
    probability = math.exp(min(logprob, 0.0))
    return Span(text, bucket(probability), percent(probability))


def percent(probability: float) -> str:
    """Whole percents, and more digits below ten: `87%`, `0.3%`."""
    share = 100 * probability
    return f"{share:.0f}%" if share >= 10 else f"{share:.1f}%"


def _alternatives(token: TokenLogprob) -> Iterator[Span]:
    probability = math.exp(min(token.logprob, 0.0))
    yield Span(f"  {_quoted(token.text)} {percent(probability)}", bucket(probability))
    others = [
        f"{_quoted(text)} {percent(math.exp(min(logprob, 0.0)))}"
        for number, text, logprob in token.top
        if number != token.id
    ]
    yield Span(f"  instead: {', '.join(others)}\n" if others else "\n", "dim")


def _quoted(text: str) -> str:
    return f'"{text}"'.replace("\n", "\\n").replace("\t", "\\t")


# ---- compare


def compare(session: ChatSession, argument: str) -> Reply:
    """MODEL: what another model answers to your last message, beside the reply"""
    if not argument:
        raise UsageError("/compare needs a model folder", hint="/compare runs/other")
    turn = session.conversation.last_reply()
    try:
        with interruptible():
            other = _other(session, argument)
    except KeyboardInterrupt:
        return f"stopped; {argument} was not opened"

    def talk(cancelled: Callable[[], bool]) -> Iterator[Completion | Shown]:
        said = session.conversation.messages(turn.parent)
        engine = Engine(other.model, other.tokenizer, max_rows=1)
        ids = reply_prompt(other.tokenizer, [*session.opening(), *said])
        request = Request(ids, session.sampling)
        events = engine.run([request], cancelled)
        theirs = next(event.text for event in events if isinstance(event, Completion))
        yield Shown(
            [[Span(turn.message.content)], [Span(theirs.strip())]],
            [str(session.folder), str(other.folder)],
        )

    return talk


def _other(session: ChatSession, place: str) -> OpenedModel:
    """The model, opened once. Raises UsageError when it has no chat template."""
    if place not in session.others:
        device = session.opened.model.model.embed_tokens.weight.device
        path = place if "://" in place else typed_path(place)
        try:
            opened = open_model(path, device)
        except OSError as error:
            raise UsageError(f"cannot open {place}: {error.strerror}") from error
        opened.tokenizer.template  # noqa: B018  a model without one is refused here
        session.others[place] = opened
    return session.others[place]


# ---- judgements


def good(session: ChatSession, argument: str) -> Reply:
    """the last reply is as it should be: keep that for preference training"""
    return _judge(session, True)


def bad(session: ChatSession, argument: str) -> Reply:
    """the last reply is not as it should be; with a good /retry it makes a pair"""
    return _judge(session, False)


def _judge(session: ChatSession, verdict: bool) -> str:
    turn = session.conversation.last_reply()
    if not turn.message.content.strip():
        raise UsageError("the last reply is empty", hint="/retry answers anew")
    path = preferences_path()
    replies = session.conversation.alternatives(turn)
    verdicts = {other.id: other.good for other in replies} | {turn.id: verdict}
    return _record(session, path, turn, verdicts)


def prefer(session: ChatSession, argument: str) -> Reply:
    """N: of the replies to your last message the Nth is best; alone: list them"""
    replies = session.conversation.alternatives(session.conversation.last_reply())
    if not argument:
        return "\n".join(f"{n} {turn.message.content}" for n, turn in enumerate(replies, 1))
    number = whole_number(argument, "/prefer alone lists the replies")
    if number > len(replies):
        held = "there is only one; /retry makes another" if len(replies) == 1 else "/prefer lists"
        raise UsageError(f"there is no reply {number} to the last message", hint=held)
    if len({turn.message.content for turn in replies}) == 1:
        raise UsageError("there is nothing to prefer it to", hint="/retry makes another reply")
    path = preferences_path()
    chosen = replies[number - 1]
    told = _record(session, path, chosen, {turn.id: turn is chosen for turn in replies})
    if chosen.id not in {turn.id for turn in session.conversation.path()}:
        session.choose(chosen)
    return told


def _record(session: ChatSession, path: Path, turn: Turn, verdicts: dict[int, bool | None]) -> str:
    """Write what the replies beside `turn` are worth, then remember it in the session."""
    tree = session.conversation
    prompt = [*session.opening(), *tree.messages(turn.parent)]

    def judged(verdict: bool) -> list[str]:
        contents = [
            tree.turns[n].message.content for n, good in verdicts.items() if good is verdict
        ]
        return [content for content in contents if content.strip()]

    count = record(path, Judged(prompt, judged(True), judged(False)))
    for number, verdict in verdicts.items():
        tree.judge(tree.turns[number], verdict)
    session.keep()
    if any(v is True for v in verdicts.values()) and any(v is False for v in verdicts.values()):
        return f"{count} {'pair' if count == 1 else 'pairs'} in {path}"
    return f"noted in {path}"
