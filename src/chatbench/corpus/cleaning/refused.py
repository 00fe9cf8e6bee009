"""Conversations whose turns the chat template of another model does not take."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from chatbench.corpus.document import Document, Dropped
from chatbench.settings import PreprocessSettings
from chatbench.text.chat_templates import ChatTemplate

REFUSED = "refused by the chat template"


def make_judge(settings: PreprocessSettings) -> Callable[[Document], Dropped | None]:
    """Tells of a document, with its control text, whether the template of --tokenizer refuses it.

    The tokenizer is opened when the first conversation comes; then raises UsageError when it has
    no template, IntegrityError when it or its template is damaged or hostile.
    """

    @cache
    def template() -> ChatTemplate:
        from chatbench.corpus.vocabulary import open_given

        assert settings.tokenizer is not None
        return open_given(settings.tokenizer, settings.template, fetched=True).template

    def judge(document: Document) -> Dropped | None:
        if settings.tokenizer is None or document.messages is None:
            return None
        for turns in (document.turns(), document.rejected_turns()):
            why = template().refusal(turns) if turns else None
            if why is not None:
                return Dropped(REFUSED, why)
        return None

    return judge
