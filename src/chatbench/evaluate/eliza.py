"""A small ELIZA (Weizenbaum 1966) in English and Chinese: what a reply is worth that understands
nothing. Its rules are our own; which of several answers it gives follows from the text."""

from __future__ import annotations

import re
import zlib

from chatbench.text.words import has_unspaced

_ENGLISH: list[tuple[str, tuple[str, ...]]] = [
    (r"\b(?:hello|hi|hey|good (?:morning|evening))\b",
     ("Hello! How are you today?", "Hi! What would you like to talk about?")),
    (r"\bthank(?:s| you)\b", ("You are welcome!", "My pleasure.")),
    (r"\b(?:bye|goodbye|see you)\b", ("Goodbye!", "See you soon.")),
    (r"\bi (?:need|want) (.+)", ("Why do you want {0}?", "What would {0} change for you?")),
    (r"\bi(?: am|'m) (.+)", ("How long have you been {0}?", "Why are you {0}?")),
    (r"\bi (?:feel|think) (.+)", ("What makes you say {0}?", "Do you often feel that way?")),
    (r"\bi (?:can't|cannot) (.+)", ("What keeps you from being able to {0}?",)),
    (r"\bmy (.+)", ("Tell me more about your {0}.", "Why does your {0} matter?")),
    (r"\bbecause (.+)", ("Is that the real reason?", "What else could explain it?")),
    (r"\bwhy (.+)", ("Why do you think {0}?", "What would you say yourself?")),
    (r"\bcan you (.+)", ("What makes you think that I can {0}?", "I will try to {0}.")),
    (r"\b(?:do|are) you (.+)", ("Why do you ask whether I {0}?",)),
    (r"\b(?:what|how|when|where|who|which)\b", ("What do you think?", "Why do you ask?")),
    (r"\b(?:yes|no)\b", ("I see. Go on.", "Are you sure?")),
]  # fmt: skip
_ENGLISH_ELSE = ("Please go on.", "Can you tell me more about that?", "I see.")
_CHINESE: list[tuple[str, tuple[str, ...]]] = [
    (r"你好|您好|早上好|晚上好|嗨", ("你好！今天过得怎么样？", "你好！想聊些什么？")),
    (r"谢谢|多谢|感谢", ("不客气！", "别客气。")),
    (r"再见|拜拜", ("再见！", "回头见。")),
    (r"我(?:需要|想要|要)(.+)", ("为什么要{0}呢？", "{0}对你有什么用？")),
    (r"我(?:觉得|感到|认为)(.+)", ("为什么觉得{0}？", "你经常这样觉得吗？")),
    (r"我(?:不能|不会)(.+)", ("是什么让你不能{0}？",)),
    (r"我是(.+)", ("你是{0}多久了？", "是{0}让你有什么感受？")),
    (r"我的(.+)", ("多说说你的{0}吧。", "你的{0}为什么重要？")),
    (r"因为(.+)", ("这是真正的原因吗？", "还有别的原因吗？")),
    (r"为什么(.+)", ("你自己觉得为什么{0}？", "你怎么想？")),
    (r"(?:你|您)(?:能|可以)(.+)", ("你为什么觉得我能{0}？", "我试试{0}。")),
    (r"什么|怎么|哪|谁|几|多少|吗", ("你觉得呢？", "为什么问这个？")),
    (r"^(?:是|对|不|没有)", ("明白了，请继续。", "你确定吗？")),
]
_CHINESE_ELSE = ("请继续说。", "能多说一点吗？", "明白了。")
_TURNED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "am": "are", "i'm": "you're",
    "you": "I", "your": "my", "yours": "mine", "are": "am", "myself": "yourself",
}  # fmt: skip
_CHINESE_TURNED = str.maketrans({"我": "你", "你": "我", "您": "我"})
_END = re.compile(r"[.!?。！？,，;；\n]")


def eliza(text: str) -> str:
    """The reply to one message."""
    chinese = has_unspaced(text)
    rules, otherwise = (_CHINESE, _CHINESE_ELSE) if chinese else (_ENGLISH, _ENGLISH_ELSE)
    for pattern, answers in rules:
        found = re.search(pattern, text, re.IGNORECASE)
        if found is not None:
            rest = found[1] if found.lastindex else ""
            return _pick(answers, text).format(_turned(_END.split(rest)[0].strip(), chinese))
    return _pick(otherwise, text)


def _pick(answers: tuple[str, ...], text: str) -> str:
    return answers[zlib.crc32(text.encode("utf-8", "surrogatepass")) % len(answers)]


def _turned(text: str, chinese: bool) -> str:
    """Mine for yours, and yours for mine."""
    if chinese:
        return re.sub("[吗呢吧]+$", "", text.translate(_CHINESE_TURNED))
    return " ".join(_TURNED.get(word.lower(), word) for word in text.split())
