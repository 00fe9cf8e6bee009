"""Junk goes, in both languages, prose and conversations stay, and the sums over whole batches are
those of a plain loop over words."""

from __future__ import annotations

import base64
import gzip
import json
import random
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pytest

from chatbench.conversation import exchange
from chatbench.corpus.cleaning import grams
from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.cleaning.quality import RULES, broken_rules, measures, quality
from chatbench.corpus.document import Document, Dropped
from conftest import SHARED_DATA

PROSE = (
    "The shop opens at nine in the morning, and by ten there is seldom a free chair. Tea, books "
    "and paper stand on the shelves, and people come in from the rain to drink something warm.\n\n"
    "Most of them stay for an hour. Some have brought a letter to answer; others read whatever "
    "lies on the table, which today is a history of the bicycle. Nobody has to buy anything."
)
FLAT = PROSE.replace("\n\n", " ")
CHINESE_PROSE = (
    "小店早上九点开门，到十点的时候就很少有空椅子了。架子上有茶、书和纸，人们从雨里进来，喝点热的东西。\n\n"
    "他们大多要坐上一个小时。有的人带着一封要回的信；有的人随手翻翻桌上的书，今天那本讲的是自行车的历史。"
    "这里谁也不必买什么，老板说，能坐下来就是好的。"
)
MENU = ("Home\nProducts\nTea\nGreen tea\nBlack tea\nPaper\nInk\nBooks\nGifts\nNew arrivals\nSale\n"
        "About us\nOur team\nPress\nJobs\nContact\nLog in\nSign up\nBasket\nWish list\nHelp\n"
        "Shipping\nReturns\nPayment\nTrack the order\nStore finder\nFollow us\nFacebook\n"
        "Newsletter to go\n"
        "Imprint\nCookies\nLegal notes\nSite map of the shop\nBack to top")  # fmt: skip
CHINESE_MENU = (
    "首页\n商品分类\n绿茶\n红茶\n乌龙茶\n信纸\n墨水\n图书\n礼品\n新品上架\n限时特卖\n关于我们\n" * 1
    + (
        "我们的团队\n媒体报道\n招聘信息\n联系方式\n登录\n免费注册\n购物车\n心愿单\n帮助中心\n配送说明\n退换货政策\n"
        "支付方式\n订单查询\n门店地址\n关注公众号\n在线客服\n友情链接\n网站地图\n返回顶部\n手机版"
    )
)
NOTICE = (
    "You need to enable JavaScript to run this app and to see the page that you asked for.\n"
    "JavaScript is disabled in your browser. Please enable JavaScript and reload this page, or "
    "the shop that you have opened will not work. This site uses cookies to make the pages work "
    "with your browser. By going on you agree to the use of cookies. Read our privacy policy."
)
CHINESE_NOTICE = (
    "您的浏览器不支持 JavaScript，本页面的内容无法显示。"
    "请在浏览器的设置中启用 JavaScript，然后刷新页面再试一次。\n"
    "本网站使用 Cookie 来改善您的体验，"
    "继续浏览就表示您同意我们的隐私政策和用户协议。如果您不同意，请关闭这个页面，"
    "或者在浏览器里停用这些功能。"
)


def verdict(text: str) -> str | None:
    return broken_rules([text], [True])[0]


def mash(rng: random.Random) -> str:
    return " ".join(
        "".join(rng.choices("asdfghjklqwertyuiop", k=rng.randint(3, 9))) for _ in range(90)
    )


# ---- what goes and what stays


def test_prose_passes() -> None:
    assert verdict(PROSE) is None
    assert verdict(CHINESE_PROSE) is None


def test_wrapped_prose_is_not_judged_by_its_line_ends() -> None:
    long = FLAT
    lines, width = [], 72
    while long.strip():
        cut = long.rfind(" ", 0, width) if len(long) > width else len(long)
        lines.append(long[:cut])
        long = long[cut + 1 :]
    assert verdict("\n".join(lines)) is None
    wrapped = "\n".join(
        CHINESE_PROSE.replace("\n", "")[at : at + 36] for at in range(0, len(CHINESE_PROSE), 36)
    )
    assert verdict(wrapped) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too short to be worth it.", "too few words"),
        ("太短了，没有什么可学的。", "too few words"),
        ("", "too few words"),
        (MENU, "too few sentences"), (CHINESE_MENU, "too few sentences"),
        (MENU + "\nTea. Ink. Paper and more.", "few line ends"),
        (CHINESE_MENU + "\n请先登录。", "few line ends"),
        (MENU.replace("\n", ".\n"), "short lines"),
        (CHINESE_MENU.replace("\n", "。\n"), "short lines"),
        (PROSE + "\nLorem ipsum dolor sit amet.", "placeholder text"),
        (CHINESE_PROSE + "\n这里是占位文字。", "placeholder text"),
        (NOTICE, "notices"), (CHINESE_NOTICE, "notices"),
        (PROSE + "\nBuy now at the shop in the street!" * 9, "repeated lines"),
        (CHINESE_PROSE + "\n马上到街上的小店来购买吧！" * 9, "repeated lines"),
        (PROSE + "\n\n" + PROSE, "repeated lines"),
        ("order tea " * 60 + "and have a lot of that. Yes. No.", "one repeated phrase"),
        ("哈哈哈的，" * 40 + "是不是。", "one repeated phrase"),
        (" ".join(f"#{word}" for word in PROSE.split()), "many symbols"),
        ("……".join(CHINESE_PROSE[at : at + 8] for at in range(0, 120, 8)), "many symbols"),
        ("\n".join(f"- {part}." for part in FLAT.split(",")), "bullet lines"),
        ("\n".join(f"{part}..." for part in PROSE.split(".")), "ellipsis lines"),
        (" ".join(f"{n * 7919} {word}" for n, word in enumerate(PROSE.split())), "few letters"),
        ("，".join(f"{n * 7919}{c}" for n, c in enumerate(CHINESE_PROSE)), "few letters"),
        ("茶、书、纸、笔、墨、雨、伞、灯、桌、椅、" * 9, "odd word length"),
        (PROSE.replace(".", ","), "too few sentences"),
        ("".join(c for c in CHINESE_PROSE if c.isalpha()), "odd word length"),
        (CHINESE_PROSE.replace("。", "，"), "too few sentences"),
    ],
)  # fmt: skip
def test_junk_goes_for_its_reason(text: str, reason: str) -> None:
    assert verdict(text) == f"quality: {reason}"


def test_noise_goes(rng: random.Random) -> None:
    encoded = base64.encodebytes(rng.randbytes(2_000)).decode()
    assert verdict(encoded) == "quality: odd word length"
    assert verdict(mash(rng)) == "quality: few stop words"
    # A block without the usual function characters, which chance would hit now and then.
    rare = [chr(rng.randrange(0x9F00, 0x9FA0)) for _ in range(200)]
    text = "，".join("".join(rare[at : at + 7]) for at in range(0, 200, 7)) + "。"
    assert verdict(text) == "quality: few stop words"


def test_other_languages_are_not_held_to_english_stop_words() -> None:
    russian = (
        "Магазин открывается в девять часов утра, и к десяти свободных стульев уже почти нет. На "
        "полках стоят чай, книги и бумага, а люди заходят с дождя, чтобы выпить чего-нибудь "
        "горячего. Большинство остаётся на час. Одни приносят письмо, на которое надо ответить; "
        "другие читают то, что лежит на столе. Сегодня это история велосипеда, толстая и старая."
    )
    german = (
        "Der Laden öffnet um neun Uhr morgens, und um zehn gibt es kaum noch einen freien Stuhl. "
        "In den Regalen stehen Tee, Bücher und Papier, und die Leute kommen aus dem Regen herein, "
        "um etwas Warmes zu trinken. Die meisten bleiben eine Stunde. Manche haben einen Brief "
        "dabei, der beantwortet werden will. Andere lesen, was gerade auf dem Tisch liegt."
    )
    japanese = (
        "店は朝九時に開き、十時にはもう空いた席がほとんどない。棚にはお茶と本と紙が並び、人々は雨の中から入ってきて"
        "温かいものを飲む。たいていの人は一時間ほど座っている。返事を書く手紙を持ってきた人もいれば、机の上の本を"
        "読む人もいる。今日は自転車の歴史の本だった。何も買わなくてもかまわない。"
    )
    assert broken_rules([russian, german, japanese], [True] * 3) == [None] * 3


def test_fenced_code_is_not_judged() -> None:
    code = "\n```python\n" + "x = {}\n" * 60 + "```\n"
    assert verdict(PROSE + code) is None
    assert verdict(CHINESE_PROSE + code) is None
    assert verdict(code) == "quality: too few words"


def test_conversations_keep_their_own_shape() -> None:
    chats = [
        Document("a", messages=exchange("hi", "hello")),
        Document("b", messages=exchange("茶?", "有")),
        Document("c", messages=exchange(MENU, "OK")),
        Document("d", messages=exchange("say it", "buy tea " * 80)),
        Document("e", messages=exchange("说吧", "买茶" * 80)),
        Document("f", messages=exchange("###", "!!! 1 2 3")),
        Document("g", messages=exchange("count", " ".join(map(str, range(200))))),
    ]
    done, counts = quality(chats)
    phrase, letters = "quality: one repeated phrase", "quality: few letters"
    assert [one.reason if isinstance(one, Dropped) else None for one in done] == [
        None, None, None, phrase, phrase, None, letters,
    ]  # fmt: skip
    assert done[0] is chats[0]
    assert counts == {phrase: 2, letters: 1}


def test_batches_have_no_borders(rng: random.Random) -> None:
    texts = [PROSE, CHINESE_PROSE, MENU, CHINESE_MENU, NOTICE, "", mash(rng), "哈哈的" * 70] * 3
    rng.shuffle(texts)
    documents = [Document(str(n), text=text) for n, text in enumerate(texts)]
    done, counts = quality(documents)
    assert sum(counts.values()) == sum(isinstance(one, Dropped) for one in done)
    alone = [quality([document])[0][0] for document in documents]
    assert alone == done
    cut = rng.randrange(len(documents))
    assert quality(documents[:cut])[0] + quality(documents[cut:])[0] == done
    assert quality([]) == ([], {})


# ---- the slow twin


def words_of(text: str) -> list[str]:
    words, run = [], ""
    for character in text + "\n":
        single = 0x3040 <= ord(character) < 0xD7B0
        if unicodedata.category(character)[0] in "LNM" and not single:
            run += character
            continue
        if run:
            words.append(run)
            run = ""
        if single and unicodedata.category(character)[0] in "LNM":
            words.append(character)
    return words


def by_hand(text: str, dense: bool) -> dict[str, float]:
    words = words_of(text)
    total = max(sum(map(len, words)), 1)
    found: dict[str, float] = {
        "words": len(words),
        "letters": sum(any(c.isalpha() for c in w) for w in words) / max(len(words), 1),
    }
    for n in (2, 3, 4):
        size = round(1.6 * n) if dense else n
        counts = Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
        best = [count * sum(map(len, gram)) for gram, count in counts.items() if count > 1]
        found[f"top {n}-gram"] = max(best, default=0) / total
    for n in range(5, 11):
        size = round(1.6 * n) if dense else n
        seen, covered = set(), set()
        for at in range(len(words) - size + 1):
            gram = tuple(words[at : at + size])
            if gram in seen:
                covered.update(range(at, at + size))
            seen.add(gram)
        found[f"repeated {n}-grams"] = sum(len(words[at]) for at in covered) / total
    return found


@pytest.mark.parametrize("dense", [False, True])
def test_sums_over_a_batch_are_those_of_a_loop(dense: bool, rng: random.Random) -> None:
    pool = (
        list("茶叶的书是纸不雨。，a1")
        if dense
        else ["tea", "the", "of", "x1", "42", ".", "ink", "\n"]
    )
    texts = []
    for _ in range(30):
        body = [rng.choice(pool) for _ in range(rng.randrange(120))]
        start = rng.randrange(len(body) + 1)
        body += body[start : start + rng.randrange(60)] * rng.randrange(3)
        texts.append(("" if dense else " ").join(body))
    found = measures(texts, ["zh" if dense else "latin"] * len(texts), dense)
    for number, text in enumerate(texts):
        expected = by_hand(text, dense)
        for name, value in expected.items():
            got = found[name][number]
            small = name.startswith("repeated") and expected["repeated 5-grams"] < 0.1
            assert got == pytest.approx(0 if small and name != "repeated 5-grams" else value), name


def test_lengths_belong_to_the_words_that_are_hashed(rng: random.Random) -> None:
    texts = [
        "".join(rng.choices("aé1 茶カ한.\n\u0301ßİ", k=rng.randrange(40))).lower()
        for _ in range(50)
    ]
    found = measures(texts, languages(texts), False)
    assert found["words"].tolist() == [len(words_of(text)) for text in texts]
    assert found["words"].tolist() == np.diff(grams.words(texts).starts).tolist()


def test_every_rule_has_a_measure() -> None:
    for dense in (False, True):
        found = measures(["tea", ""], ["latin", "none"], dense)
        assert {rule.measure for rule in RULES} == set(found)
        assert all(len(value) == 2 for value in found.values())


# ---- real data


def rows(name: str, key: str) -> list[Any]:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("no shared data")
    return [json.loads(line)[key] for line in gzip.decompress(path.read_bytes()).splitlines()]


def pieces(text: str, size: int) -> list[str]:
    parts: list[str] = [""]
    for paragraph in text.replace("\r", "").split("\n\n"):
        if len(parts[-1]) > size:
            parts.append("")
        parts[-1] += paragraph + "\n\n"
    return parts


@pytest.mark.parametrize(
    ("name", "size"),
    [("gutenberg-en/158-emma.txt.gz", 8000),
     ("gutenberg-en/2701-moby-dick--or-the-whale.txt.gz", 8000),
     ("gutenberg-zh/23962-xiyouji.txt.gz", 4000), ("gutenberg-zh/27166-nahan-luxun.txt.gz", 4000)],
)  # fmt: skip
def test_good_books_stay(name: str, size: int) -> None:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("no shared data")
    texts = pieces(gzip.decompress(path.read_bytes()).decode("utf-8-sig"), size)
    dropped = [reason for reason in broken_rules(texts, [True] * len(texts)) if reason]
    assert len(dropped) <= 0.08 * len(texts) + 1


def test_text_books_stay() -> None:
    texts = [
        piece
        for text in rows("docs-en/openstax-introduction-anthropology.jsonl.gz", "text")[:40]
        for piece in pieces(text, 8000)
    ]
    dropped = [reason for reason in broken_rules(texts, [True] * len(texts)) if reason]
    assert len(dropped) <= 0.2 * len(texts)
