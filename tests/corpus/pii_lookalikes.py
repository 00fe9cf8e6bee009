"""Texts without personal data that look as if they had some."""

from __future__ import annotations

import string
import uuid
from collections.abc import Callable
from random import Random

HEX = "0123456789abcdef"


def lookalike(language: str, rng: Random) -> str:
    """A sentence or a line of code that must be left as it is."""
    makers = COMMON + (ENGLISH if language == "en" else CHINESE) * 2
    return rng.choice(makers)(rng)


def _digits(rng: Random, count: int) -> str:
    return rng.choice("123456789") + "".join(rng.choices(string.digits, k=count - 1))


def _hex(rng: Random, count: int) -> str:
    return "".join(rng.choices(HEX, k=count))


def _date(rng: Random, form: str) -> str:
    return form.format(rng.randrange(1800, 2040), rng.randrange(1, 13), rng.randrange(1, 29))


def _clock(rng: Random) -> str:
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}"


def _isbn(rng: Random) -> str:
    """ISBN-13 with its check digit, hyphenated or not; or ISBN-10."""
    body = rng.choice(("978", "979")) + _digits(rng, 9)
    check = -sum(int(d) * (1, 3)[n % 2] for n, d in enumerate(body)) % 10
    hyphens = f"{body[:3]}-{body[3]}-{body[4:7]}-{body[7:12]}-{check}"
    ten = f"{rng.randrange(10)}-{_digits(rng, 3)}-{_digits(rng, 5)}-{rng.choice('0123456789X')}"
    return rng.choice((f"{body}{check}", hyphens, ten))


def _version(rng: Random) -> str:
    return ".".join(str(rng.randrange(30)) for _ in range(rng.randrange(2, 5)))


def _mac(rng: Random) -> str:
    return rng.choice(":-").join(_hex(rng, 2) for _ in range(6))


PI = "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"
Maker = Callable[[Random], str]

COMMON: tuple[Maker, ...] = (
    lambda r: f"commit {_hex(r, 40)}",
    lambda r: f"md5 {_hex(r, 32)}",
    lambda r: f"sha256:{_hex(r, 64)}",
    lambda r: str(uuid.UUID(int=r.getrandbits(128), version=4)),
    lambda r: f"MAC {_mac(r)}",
    lambda r: f"color: #{_hex(r, r.choice((3, 6, 8)))};",
    lambda r: f"ISBN {_isbn(r)}",
    lambda r: f"ISSN {_digits(r, 4)}-{_digits(r, 4)}",
    lambda r: f"doi:10.{_digits(r, 4)}/{_digits(r, 7)}.{_digits(r, 4)}",
    lambda r: f"arXiv:{r.randrange(10, 26):02}{r.randrange(1, 13):02}.{_digits(r, 5)}v2",
    lambda r: PI[: r.randrange(12, 80)],
    lambda r: f"{r.random() * 100}, {r.random():.18f}",
    lambda r: f"({r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f})",
    lambda r: f"{_date(r, '{}-{:02}-{:02}')}T{_clock(r)}.{_digits(r, 6)}Z",
    lambda r: f"[{_date(r, '{}/{:02}/{:02}')} {_clock(r)},{_digits(r, 3)}] INFO started",
    lambda r: f"timestamp={r.randrange(10**9, 17 * 10**8)}",
    lambda r: f"ts: {r.randrange(10**12, 17 * 10**11)}",
    lambda r: f"@property\ndef size_{_digits(r, 2)}(self): return self._n",
    lambda r: f"@pytest.mark.parametrize('x', [{_digits(r, 3)}, {_digits(r, 3)}])",
    lambda r: f"user{_digits(r, 2)}@host:~/src$ ls -la",
    lambda r: f"root@db-{_digits(r, 2)}:/var# tail -n {_digits(r, 3)} log",
    lambda r: f"npm install left-pad@1.{_digits(r, 2)}.{_digits(r, 1)} react@^{_digits(r, 2)}.0.0",
    lambda r: f"icon-{_digits(r, 2)}@2x.png",
    lambda r: f"y = X@W.T + {_digits(r, 2)}",
    lambda r: f"std::vector<int> v{_digits(r, 1)}; abc::def(a::b);",
    lambda r: f"token = tokenizer.next_token(ids[{_digits(r, 4)}])",
    lambda r: "password = os.environ['DB_PASSWORD']",
    lambda r: "password: <your-password>, token: ${TOKEN}",
    lambda r: "api_key = getenv(\"API_KEY\")",
    lambda r: f"max_tokens = {_digits(r, 4)}, secret=None",
    lambda r: f"localhost 127.0.0.1:{_digits(r, 4)} and 0.0.0.0, mask 255.255.255.0",
    lambda r: f"192.0.2.{r.randrange(256)} and 2001:db8::{_hex(r, 2)}",
    lambda r: f"v{r.randrange(9)}.{r.randrange(9)}.{r.randrange(9)}.{r.randrange(9)}",
    lambda r: f"Mozilla/5.0 Chrome/{r.randrange(60, 130)}.0.{_digits(r, 4)}.{_digits(r, 2)}",
    lambda r: f"pip install thing-{_version(r)}-py3-none-any.whl",
    lambda r: f"SKU {_digits(r, 4)}-{_digits(r, 4)}-{_digits(r, 2)}",
    lambda r: f"{_digits(r, 2)}x{_digits(r, 2)} + {_digits(r, 4)} = {_digits(r, 6)}",
    lambda r: f"| {_digits(r, 4)} | {_digits(r, 3)} | {_digits(r, 5)} | {_digits(r, 4)} |",
    lambda r: " ".join(_digits(r, r.randrange(1, 5)) for _ in range(8)),
    lambda r: ",".join(_digits(r, r.randrange(2, 8)) for _ in range(6)),
    lambda r: f"{_digits(r, 3)},{_digits(r, 3)},{_digits(r, 3)}.{_digits(r, 2)}",
    lambda r: f"https://example.com/item/{_digits(r, 12)}?page={_digits(r, 2)}",
    lambda r: f"git@github.com:owner/repo{_digits(r, 2)}.git",
    lambda r: f"0x{_hex(r, 16)}",
    lambda r: f"OID 1.3.6.1.4.1.{_digits(r, 4)}.{_digits(r, 1)}",
)  # fmt: skip

ENGLISH: tuple[Maker, ...] = (
    lambda r: f"It happened between {r.randrange(1500, 1999)} and {r.randrange(1999, 2024)}.",
    lambda r: f"The meeting is on {_date(r, '{2:02}/{1:02}/{0}')} at {_clock(r)}.",
    lambda r: f"Born {_date(r, '{2:02}.{1:02}.{0}')}, died {r.randrange(1900, 2024)}.",
    lambda r: f"Order no. {_digits(r, r.choice((8, 10, 12, 16)))} has shipped.",
    lambda r: f"Your order number is {_digits(r, 3)}-{_digits(r, 7)}-{_digits(r, 7)}.",
    lambda r: f"Tracking number {_digits(r, r.choice((12, 15, 20, 22)))}, by post.",
    lambda r: f"Tracking: 1Z{_digits(r, 6)}{_digits(r, 10)}",
    lambda r: f"Version {_version(r)} fixes bug {_digits(r, 6)}.",
    lambda r: f"See chapter {_version(r)} and section {_version(r)}.",
    lambda r: f"It costs ${_digits(r, 1)},{_digits(r, 3)},{_digits(r, 3)}.{_digits(r, 2)} in all.",
    lambda r: f"They won {r.randrange(9)}-{r.randrange(9)}, then {_digits(r, 2)}-{_digits(r, 2)}.",
    lambda r: f"The population was {_digits(r, 8)} in {r.randrange(1800, 2024)}.",
    lambda r: f"Account {_digits(r, r.choice((8, 9, 10, 12)))} at the branch was closed.",
    lambda r: f"Follow @user_{_digits(r, 3)} and @SomeBody on the site.",
    lambda r: f"[{_digits(r, 2)}-{_digits(r, 3)}] (pp. {_digits(r, 3)}-{_digits(r, 4)})",
    lambda r: f"Invoice {_date(r, '{}{:02}{:02}')}-{_digits(r, 4)} is due.",
    lambda r: "I forgot my password: it was too long.",
    lambda r: "The secret is patience, and the token is a word.",
    lambda r: f"The ratio 16:9 or {_digits(r, 4)}:{_digits(r, 4)} at {_clock(r)}",
    lambda r: f"Flight BA{_digits(r, 4)}, gate {_digits(r, 2)}, seat 12A, PNR {_digits(r, 6)}",
    lambda r: f"Population {_digits(r, 3)} {_digits(r, 3)} {_digits(r, 3)}, {_digits(r, 5)} km2",
    lambda r: f"Meet at the dot com office, room {_digits(r, 3)}.",
    lambda r: f"Model XR-{_digits(r, 4)}-{_digits(r, 3)}, part {_digits(r, 5)}-{_digits(r, 5)}",
    lambda r: f"at 12:{_digits(r, 2)}:45 and 08:05:{_digits(r, 2)}:10",
    lambda r: f"1914-1918, 1939-1945, {_date(r, '{}-{:02}-{:02}')}",
    lambda r: f"ZIP 9{_digits(r, 4)}-{_digits(r, 4)}, patent US{_digits(r, 7)}B2",
    lambda r: f"bug #{_digits(r, 7)}, ticket {_digits(r, 8)}, pull request {_digits(r, 5)}",
)  # fmt: skip

CHINESE: tuple[Maker, ...] = (
    lambda r: f"这发生在{r.randrange(1500, 1999)}年到{r.randrange(1999, 2024)}年之间。",
    lambda r: f"会议定于{_date(r, '{}年{}月{}日')}{r.randrange(24)}时。",
    lambda r: f"订单号{_digits(r, r.choice((11, 12, 16, 18, 19)))}已发货。",
    lambda r: f"快递单号：{_digits(r, r.choice((12, 13, 15)))}，请查收",
    lambda r: f"运单号SF{_digits(r, 13)}",
    lambda r: f"版本{_version(r)}已发布，修复{_digits(r, 4)}个问题",
    lambda r: f"见第{_version(r)}节和第{_digits(r, 3)}页。",
    lambda r: f"总价￥{_digits(r, 3)},{_digits(r, 3)}.{_digits(r, 2)}元，共{_digits(r, 8)}件",
    lambda r: f"比分是{r.randrange(99)}:{r.randrange(99)}，后来{r.randrange(9)}-{r.randrange(9)}",
    lambda r: f"人口{_digits(r, 8)}人，面积{_digits(r, 6)}平方公里",
    lambda r: "一九八四年十二月三十一日，三千五百六十七万八千九百零一人",
    lambda r: "二〇二三年一三八一二三四五六七八",
    lambda r: f"关注@张三{_digits(r, 3)}和@某人",
    lambda r: f"参考文献[{_digits(r, 2)}-{_digits(r, 2)}]，第{_digits(r, 3)}-{_digits(r, 3)}页",
    lambda r: f"发票号{_digits(r, 20)}，编号{_date(r, '{}{:02}{:02}')}{_digits(r, 4)}",
    lambda r: "密码：不能为空，请输入密码。",
    lambda r: "密码是多少？口令是什么我忘了。",
    lambda r: "成功的密钥是坚持，token是词元。",
    lambda r: f"航班CA{_digits(r, 4)}，座位12A，{_clock(r)}起飞",
    lambda r: f"圆周率约为{PI[: r.randrange(12, 60)]}",
    lambda r: f"型号XR-{_digits(r, 4)}-{_digits(r, 3)}，货号{_digits(r, 5)}-{_digits(r, 5)}",
    lambda r: f"坐标{r.uniform(20, 40):.6f}，{r.uniform(100, 120):.6f}",
    lambda r: f"京ICP备{_digits(r, 8)}号，京公网安备{_digits(r, 14)}号",
    lambda r: f"邮编{_digits(r, 6)}，统一社会信用代码91{_digits(r, 6)}MA{_digits(r, 7)}X",
    lambda r: f"股票代码{_digits(r, 6)}，成交{_digits(r, 9)}股，涨{_digits(r, 2)}.{_digits(r, 2)}%",
    lambda r: f"群号{_digits(r, 9)}，播放{_digits(r, 7)}次",
    lambda r: f"第{r.randrange(1, 99)}届，{r.randrange(1949, 2024)}-{r.randrange(1949, 2024)}学年",
)  # fmt: skip
