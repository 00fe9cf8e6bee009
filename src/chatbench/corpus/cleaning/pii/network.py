"""E-mail addresses (RFC 5322 as used in practice) and IP addresses (RFC 791, RFC 4291)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

from chatbench.corpus.cleaning.pii.found import Found, is_word, places

_LATIN = "a-zA-ZÀ-ÖØ-öø-ɏ"
_ACCENTED = "".join(chr(c) for c in range(0xC0, 0x250) if c not in (0xD7, 0xF7))
_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-'" + _ACCENTED
_DOMAIN = re.compile(
    rf"(?:[{_LATIN}0-9](?:[{_LATIN}0-9-]{{0,61}}[{_LATIN}0-9])?\.){{1,6}}"
    r"([A-Za-z]{2,18})(?![A-Za-z0-9_-])"
)
# Country codes (ISO 3166 with uk and eu, su) and the generic top-level domains in wide use. A full
# list would let in code such as x@w.transpose.
_TOP_LIST = """
    ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs
    bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg
    er es et eu fi fj fk fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn
    hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li
    lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne
    nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb
    sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt
    tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw
    com org net edu gov mil int info biz name pro aero coop museum mobi asia tel jobs cat post arpa
    app blog cloud club company dev digital email fun global group homes host icu live life link
    ltd management media ninja news one online page press shop site software solutions space store
    studio team tech today top vip website wiki work works world xyz zone berlin london nyc tokyo
    education institute university network systems agency services consulting center community
"""
_TOP = frozenset(_TOP_LIST.split())
# Spoken and bracketed forms: name [at] host [dot] com, name at host dot com.
_SPELLED = re.compile(
    rf"[{_LATIN}0-9](?:[{_LATIN}0-9_+'-]|\.|[ ]?[\[(]dot[\])][ ]?){{0,60}}[ ]?[\[(]at[\])][ ]?"
    rf"(?:[{_LATIN}0-9-]{{1,40}}(?:\.|[ ]?[\[(]dot[\])][ ]?|[ ]dot[ ])){{1,4}}"
    rf"([A-Za-z]{{2,12}})(?![A-Za-z0-9])"
    rf"|[A-Za-z0-9][A-Za-z0-9._+'-]{{0,40}}(?:[ ]dot[ ][A-Za-z0-9._+'-]{{1,20}})?[ ]at[ ]"
    rf"(?!(?:the|an?|this|that|my|our|your|his|her|their|its|any|every|some)[ ])"
    rf"(?:[{_LATIN}0-9-]{{1,40}}[ ]dot[ ]){{1,3}}([A-Za-z]{{2,12}})(?![A-Za-z0-9])"
)
_URL_USER = re.compile(r"://[^\s:/@]*:\Z")
_SPELLED_LIST = "com org net edu gov io cn de uk fr jp in info dev ch it nl at xyz hk tw au"
_SPELLED_TOP = frozenset(_SPELLED_LIST.split())
_REACH = 110


def emails(text: str) -> Iterator[Found]:
    """Addresses with a known top-level domain; git@host: of repository URLs is none."""
    for at in places(text, "@"):
        domain = _DOMAIN.match(text, at + 1)
        if domain is None or domain[1].lower() not in _TOP:
            continue
        before = text[max(0, at - 64) : at]
        local = before[len(before.rstrip(_LOCAL)) :].lstrip(".-'+%")
        start = at - len(local)
        if not local or local[-1] in ".'" or (at - 64 > 0 and len(local) == 64):
            continue
        if _is_no_mailbox(text, start, at, domain.end()):
            continue
        yield Found("email", start, domain.end())
    yield from _spelled(text)


def _is_no_mailbox(text: str, start: int, at: int, end: int) -> bool:
    """Whether it is the user of a code repository, or the id of a message: mostly digits, in <>."""
    local = text[start:at]
    if local in ("git", "hg", "svn"):
        return text[end : end + 1] in (":", "/") or text[start - 3 : start] == "://"
    if text[start - 1 : start] == "$":
        return True
    if text[start - 1 : start] == ":" and _URL_USER.search(text[max(0, start - 70) : start]):
        return True  # the password of a URL, which is the business of the finder of secrets
    digits = sum(character.isdigit() for character in local)
    framed = text[start - 1 : start] == "<" and text[end : end + 1] == ">"
    return framed and digits >= 8 and digits * 2 > len(local) and not local.isdigit()


def _spelled(text: str) -> Iterator[Found]:
    done = 0
    for sign in ("(at)", "[at]", " dot "):
        for place in places(text, sign):
            if place < done:
                continue
            for match in _SPELLED.finditer(text, max(done, place - 64), place + _REACH):
                if (match[1] or match[2]).lower() in _SPELLED_TOP:
                    yield Found("email", *match.span())
            # Signs that stand close are seen together; so a stretch is looked at a few times only.
            done = place + 48
        done = 0


_IPV4 = re.compile(
    r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][-./])[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}"
    r"(?![0-9A-Za-z_])(?!\.[0-9A-Za-z])(?!-[0-9A-Za-z])"
)
_VERSION = re.compile(
    r"(?:\bv|\bver|version|chapter|section|release|build|kernel|firmware|clause|figure|fig|table|"
    r"版本|版|第|章|节|節|条|图|表)s?[ .:：]{0,3}"
    r"(?:[0-9.]+ ?(?:and|to|or|-|,|和|到|至|、) ?(?:version |section |v)?)?\Z",
    re.IGNORECASE,
)
_NOBODY4 = tuple(IPv4Network(net) for net in (
    "0.0.0.0/8", "127.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
))  # fmt: skip
_NOBODY6 = tuple(IPv6Network(net) for net in ("2001:db8::/32", "3fff::/20"))


def ipv4(text: str, runs: Sequence[tuple[int, int]]) -> Iterator[Found]:
    """Public and private addresses; not loopback, unspecified, documentation (RFC 5737), multicast
    and reserved ones, masks, the numbers of
    versions and chapters, and four single digits."""
    for run_start, run_end in runs:
        if text.count(".", run_start, run_end) < 3:
            continue
        for match in _IPV4.finditer(text, run_start, min(run_end + 2, len(text))):
            start, end = match.span()
            try:
                address = IPv4Address(match[0])
            except AddressValueError:
                continue
            # Four single digits: hardly ever an address of a person, nearly always a version.
            if end - start == 7 or any(address in net for net in _NOBODY4):
                continue
            if not _VERSION.search(text[max(0, start - 28) : start]):
                yield Found("ip", start, end)


_IPV6_ANCHOR = re.compile(r":[0-9A-Fa-f]{0,4}:")
_ASSIGNED = re.compile(r"(?:[23][0-9A-Fa-f]{3}|[Ff][CcDdEe][0-9A-Fa-f]{2}):(?!:\Z)")
_IPV6_CHARACTERS = "0123456789abcdefABCDEF:."


def ipv6(text: str) -> Iterator[Found]:
    """Addresses that hosts can have, and IPv4 addresses mapped to IPv6; not those of
    documentation (RFC 3849), MAC addresses, times and C++ names."""
    done = 0
    while anchor := _IPV6_ANCHOR.search(text, done):
        before = text[max(0, anchor.start() - 45) : anchor.start()]
        start = anchor.start() - (len(before) - len(before.rstrip(_IPV6_CHARACTERS)))
        after = text[anchor.start() : anchor.start() + 4096]
        whole = len(after) - len(after.lstrip(_IPV6_CHARACTERS))
        end = anchor.start() + whole
        done = max(end, anchor.end())
        end -= whole - len(after[:whole].rstrip("."))
        if text[end - 1] == ":" and text[end - 2 : end] != "::":
            end -= 1
        # In "Host:2001:…" and "code:2001:…" the first colon belongs to the word before.
        if is_word(text, start - 1) or (text[start] == ":" and text[start : start + 2] != "::"):
            start = text.find(":", start) + 1
            if text[start : start + 1] == ":":
                continue
        alone = not (is_word(text, start - 1) or is_word(text, end))
        if alone and end - start <= 45 and _is_ipv6(text[start:end]):
            yield Found("ip", start, end)


def _is_ipv6(written: str) -> bool:
    try:
        address = IPv6Address(written)
    except AddressValueError:
        return False
    mapped = address.ipv4_mapped
    if mapped is not None:
        return "." in written and not any(mapped in net for net in _NOBODY4)
    # Global unicast (2000::/3), unique local and link-local, written with all four digits; the
    # other blocks hold no hosts, and look like times, keys of word nets and names in C++.
    return _ASSIGNED.match(written) is not None and not any(address in net for net in _NOBODY6)
