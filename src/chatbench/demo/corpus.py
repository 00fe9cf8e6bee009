"""The bundled demo corpus: a small shop's customer service and small talk.

Everything is made from the hand-written phrasings in ``shop_en.toml`` and ``shop_zh.toml``.
The ``held`` lines of those files are used by :func:`questions` alone.
"""

import itertools
import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Generic, TypeVar

LANGUAGES = ("en", "zh")
HELD_PRODUCTS = 4
PLANS = {"ask": 30, "chat": 5, "ask ask": 12, "follow": 23, "chat ask": 7, "ask close": 6}
PLANS |= {"follow close": 5, "chat follow": 3, "ask follow": 4, "chat ask close": 3}
PLANS |= {"ask ask ask close": 2}
ASK_KINDS = {"fact": 64, "slot": 30, "unknown": 6}
PROSE_PARTS = {"fact": 30, "exchange": 35, "goods": 20, "filler": 15}
PROSE_TARGET = {"en": (78, 112), "zh": (130, 220)}
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """One thing a customer may say, with every answer that is right for it."""

    intent: str
    text: str
    answers: tuple[str, ...]
    facts: tuple[str, ...] = ()
    product: str = ""


@dataclass(frozen=True)
class FollowUp:
    """A question that is only clear after another one; ``moves`` says it names a new product."""

    after: str
    intent: str
    text: str
    moves: bool = False


@dataclass(frozen=True)
class Shop:
    """The material of one language, split into training and held-out phrasings."""

    language: str
    raw: dict[str, Any]
    train: tuple[Ask, ...]
    held: tuple[Ask, ...]
    train_follow: tuple[FollowUp, ...]
    held_follow: tuple[FollowUp, ...]
    chat: tuple[Ask, ...]
    closing: tuple[Ask, ...]

    def others(self, product: str) -> list[str]:
        """The names of all products but this one."""
        return [item["name"] for item in self.raw["product"] if item["name"] != product]

    def by_intent(self, intent: str) -> list[Ask]:
        """The training phrasings of an intent."""
        return [ask for ask in self.train if ask.intent == intent]


def expand(line: str) -> list[str]:
    """Write out the alternatives of a line: ``"[a|b] c"`` gives ``["a c", "b c"]``."""
    parts = re.split(r"\[([^\]]*)\]", line)
    options = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*options)]


@cache
def _lines(block: str) -> tuple[str, ...]:
    return tuple(text for line in block.strip().splitlines() for text in expand(line))


def normalise(text: str) -> str:
    """Lower-case a text and keep its letters and digits, to compare two wordings."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _slot_ask(raw: dict[str, Any], slot: dict[str, Any], product: dict[str, str], text: str) -> Ask:
    name, value = product["name"], product[slot["name"]]
    answers = tuple(a.format(p=name, v=value) for a in _lines(slot["answers"]))
    return Ask(slot["name"], text.format(p=name), answers, (value,), name)


def _asks(raw: dict[str, Any], split: str) -> Iterator[Ask]:
    for entry in [*raw["fact"], {"name": "unknown", **raw["unknown"]}]:
        for text in _lines(entry[split]):
            yield Ask(entry["name"], text, _lines(entry["answers"]), tuple(entry["facts"]))
    products = raw["product"]
    for i, slot in enumerate(raw["slot"]):
        for j, text in enumerate(_lines(slot[split])):
            picks = [(i + 2 * j + 3 * k) % len(products) for k in range(HELD_PRODUCTS)]
            for n in picks if split == "held" else range(len(products)):
                yield _slot_ask(raw, slot, products[n], text)


def _follow_ups(raw: dict[str, Any], split: str) -> Iterator[FollowUp]:
    slots = [slot["name"] for slot in raw["slot"]]
    for entry in raw["slot"]:
        name = entry["name"]
        others = [slot for slot in slots if slot != name]
        for text in _lines(raw["switch"][split]):
            yield FollowUp(name, name, text, moves=True)
        for i, text in enumerate(_lines(entry["again" if split == "train" else "again_held"])):
            for after in others if split == "train" else [others[i % len(others)]]:
                yield FollowUp(after, name, text)
    for pair in raw["follow"]:
        for text in _lines(pair[split]):
            yield FollowUp(pair["after"], pair["intent"], text)


@cache
def load_shop(language: str) -> Shop:
    """Read the material of one language ("en" or "zh")."""
    source = resources.files("chatbench.demo").joinpath(f"shop_{language}.toml")
    raw = tomllib.loads(source.read_text(encoding="utf-8"))
    talk: dict[bool, list[Ask]] = {False: [], True: []}
    for entry in raw["chat"]:
        answers, texts = _lines(entry["answers"]), _lines(entry["train"])
        asks = [Ask(entry["name"], text, answers) for text in texts]
        talk[entry.get("closing", False)] += asks
    train, held = tuple(_asks(raw, "train")), tuple(_asks(raw, "held"))
    follow, held_follow = tuple(_follow_ups(raw, "train")), tuple(_follow_ups(raw, "held"))
    chat, closing = tuple(talk[False]), tuple(talk[True])
    return Shop(language, raw, train, held, follow, held_follow, chat, closing)


def _second(shop: Shop, follow: FollowUp, first: Ask, other: str) -> Ask:
    """The follow-up as a question of its own, after ``first``; ``other`` is the new product."""
    if not first.product:
        return replace(shop.by_intent(follow.intent)[0], text=follow.text)
    name = other if follow.moves else first.product
    slot = next(slot for slot in shop.raw["slot"] if slot["name"] == follow.intent)
    product = next(item for item in shop.raw["product"] if item["name"] == name)
    return _slot_ask(shop.raw, slot, product, follow.text)


def _open_with(shop: Shop, opener: str, text: str) -> str:
    first_word = re.split(r"[ ,?]", text)[0]
    soft = opener.rstrip().endswith((",", ":")) and first_word not in shop.raw["keep_capital"]
    return opener + (text[:1].lower() + text[1:] if soft else text)


def _close_with(shop: Shop, closer: str, text: str) -> str:
    stem, mark = (text[:-1], text[-1]) if text[-1] in "?.!？。！" else (text, "")
    if closer.startswith(","):
        return text if "please" in text.lower() else stem + closer + mark
    return text + closer if mark else text + shop.raw["comma"] + closer.strip().lower()


def _weighted(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


class _Deck(Generic[T]):
    """Draws every item once, in random order, before any item comes again."""

    def __init__(self, rng: random.Random, items: Sequence[T]) -> None:
        self._rng, self._items, self._left = rng, list(items), list[T]()

    def draw(self) -> T:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


class _Talker:
    """Makes the conversations of one language."""

    def __init__(self, shop: Shop, rng: random.Random) -> None:
        self.shop, self.rng = shop, rng
        kinds: dict[str, list[Ask]] = {kind: [] for kind in ASK_KINDS}
        for ask in shop.train:
            kind = "slot" if ask.product else "fact"
            kinds["unknown" if ask.intent == "unknown" else kind].append(ask)
        self.asks = {kind: _Deck(rng, asks) for kind, asks in kinds.items()}
        self.first = {f.after: _Deck(rng, shop.by_intent(f.after)) for f in shop.train_follow}
        moves = [f for f in shop.train_follow if f.moves]
        self.follow = _Deck(rng, [*shop.train_follow, *moves, *moves])
        self.chat, self.closing = _Deck(rng, shop.chat), _Deck(rng, shop.closing)

    def _dress(self, text: str, polite: bool) -> str:
        rng, raw = self.rng, self.shop.raw
        if polite and rng.random() < 0.15:
            text = _close_with(self.shop, rng.choice(raw["closers"]), text)
        elif rng.random() < 0.2:
            text = text.rstrip("?.!？。！")
        if polite and rng.random() < 0.35:
            asking = text.endswith(("?", "？")) and not text.startswith(
                tuple(raw["no_question_opener"])
            )
            openers = raw["question_openers"] if asking and rng.random() < 0.4 else raw["openers"]
            text = _open_with(self.shop, rng.choice(openers), text)
        return text.lower() if rng.random() < 0.12 else text

    def _turn(self, ask: Ask, polite: bool) -> list[dict[str, str]]:
        return _exchange(self._dress(ask.text, polite), self.rng.choice(ask.answers))

    def dialogue(self) -> list[dict[str, str]]:
        """One conversation of one to four exchanges."""
        messages: list[dict[str, str]] = []
        for step in _weighted(self.rng, PLANS).split():
            if step == "follow":
                follow = self.follow.draw()
                first = self.first[follow.after].draw()
                other = self.rng.choice(self.shop.others(first.product))
                messages += self._turn(first, polite=not messages)
                messages += self._turn(_second(self.shop, follow, first, other), polite=False)
            elif step == "ask":
                ask = self.asks[_weighted(self.rng, ASK_KINDS)].draw()
                messages += self._turn(ask, polite=True)
            else:
                deck = self.closing if step == "close" else self.chat
                messages += self._turn(deck.draw(), polite=False)
        return messages

    def passage(self) -> str:
        """One plain-text passage."""
        rng, raw = self.rng, self.shop.raw["prose"]
        kind, chinese = rng.choice(raw["kind"]), self.shop.language == "zh"
        pools = {k: v for k, v in raw.items() if k not in ("kind", "filler", "exchanges")}
        pools |= {"name": raw["first_names"], "p": self.shop.others("")}
        fill = {key: itertools.cycle(rng.sample(v, len(v))) for key, v in pools.items()}
        parts = [rng.choice(_lines(kind["open"]))]
        low, high = PROSE_TARGET[self.shop.language]
        target, size = rng.randint(low, high), 0
        while size < target:
            sentence = self._sentence(_weighted(rng, PROSE_PARTS))
            if sentence not in parts:
                parts.append(sentence)
                size += len(sentence if chinese else sentence.split())
        parts.append(rng.choice(_lines(kind["close"])))
        text = ("" if chinese else " ").join(parts)
        return re.sub(r"\{(\w+)\}", lambda match: next(fill[match[1]]), text)

    def _sentence(self, part: str) -> str:
        rng, raw = self.rng, self.shop.raw
        if part == "filler":
            return rng.choice(_lines(raw["prose"]["filler"]))
        if part == "fact":
            return rng.choice(_lines(rng.choice(raw["fact"])["prose"]))
        if part == "goods":
            slot = rng.choice(raw["slot"])
            product = rng.choice(raw["product"])
            sentence = rng.choice(_lines(slot["prose"]))
            return sentence.format(p=product["name"], v=product[slot["name"]])
        ask = self.asks[rng.choice(["fact", "fact", "slot"])].draw()
        while not ask.text.endswith(("?", "？")):
            ask = self.asks["fact"].draw()
        frame = rng.choice(_lines(raw["prose"]["exchanges"]))
        return frame.replace("{q}", ask.text).replace("{a}", rng.choice(ask.answers))


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _talkers(seed: int) -> list[_Talker]:
    return [_Talker(load_shop(lang), random.Random(f"{seed}-{lang}")) for lang in LANGUAGES]


def dialogues(seed: int, count: int) -> list[dict[str, object]]:
    """Training conversations, English and Chinese in turn; the same for the same arguments."""
    turns = itertools.islice(itertools.cycle(_talkers(seed)), count)
    return [{"messages": t.dialogue(), "language": t.shop.language} for t in turns]


def prose(seed: int, count: int) -> list[str]:
    """Plain-text passages about the shop for pretraining, English and Chinese in turn."""
    return [t.passage() for t in itertools.islice(itertools.cycle(_talkers(seed)), count)]


def questions() -> list[dict[str, object]]:
    """Held-out questions with a reference answer and the facts a right answer must contain."""
    rows: list[dict[str, object]] = []
    for shop in map(load_shop, LANGUAGES):
        openers = itertools.cycle(shop.raw["openers"])
        for i, ask in enumerate(shop.held):
            text = _open_with(shop, next(openers), ask.text) if i % 5 == 2 else ask.text
            rows.append(_row(shop, ask, _exchange(text, ask.answers[0])))
        for i, follow in enumerate(shop.held_follow):
            firsts = shop.by_intent(follow.after)
            first = firsts[5 * i % len(firsts)]
            others = shop.others(first.product)
            second = _second(shop, follow, first, others[3 * i % len(others)])
            before = _exchange(first.text, first.answers[0])
            rows.append(_row(shop, second, before + _exchange(second.text, second.answers[0])))
    return rows


def _row(shop: Shop, ask: Ask, messages: list[dict[str, str]]) -> dict[str, object]:
    row: dict[str, object] = {"messages": messages, "facts": list(ask.facts)}
    return row | {"language": shop.language, "intent": ask.intent}
