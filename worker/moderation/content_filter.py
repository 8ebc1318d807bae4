"""The filter as the pump sees it: bodies and answers in, futures out. Whatever a judge fails at does not pass."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from jobs.errors import ContentFiltered
from jobs.settings import SettingsError
from worker.chat import Answer
from worker.engine import Engine
from worker.moderation import conversation
from worker.moderation.conversation import Conversation, Speaker, Turn
from worker.moderation.futures import begun, gathered, mapped
from worker.moderation.judge import Judge

logger = logging.getLogger(__name__)


class ContentFilter:
    """What any of the judges names is filtered."""

    def __init__(self, judges: Sequence[Judge], engines: Sequence[Engine] = ()) -> None:
        """`engines` are those behind the judges, for whoever watches over them."""
        self._judges = judges
        self.engines = engines

    def prompt(self, body: Mapping[str, object]) -> Future[None]:
        """Whether a checked body may be asked: the future fails with ContentFiltered if it may not.

        Never raises; the future fails with whatever a judge fails with.
        """
        return mapped(begun(lambda: self._judge(conversation.asked(body))), _refuse)

    def answer(self, body: Mapping[str, object], answer: Answer) -> Future[Answer]:
        """What may be sent of an answer to `body`: of a choice that is filtered nothing but its categories."""
        return begun(lambda: self._filtered(conversation.asked(body), answer))

    def prove(self, timeout_seconds: float) -> None:
        """SettingsError if the judges cannot judge a harmless text."""
        try:
            self._judge(Conversation((Turn(Speaker.USER, "Hello."),))).result(timeout_seconds)
        except Exception as error:
            raise SettingsError(f"The content filter cannot judge: {str(error) or repr(error)}.") from error

    def _filtered(self, asked: Conversation, answer: Answer) -> Future[Answer]:
        written = orjson.loads(answer.body)
        judged = [self._judge(asked.answered(choice["message"])) for choice in written["choices"]]
        return mapped(gathered(judged), partial(_withheld, answer, written))

    def _judge(self, said: Conversation) -> Future[frozenset[str]]:
        if not said.text.strip():
            return mapped(gathered([]), frozenset)
        verdicts = gathered([judge.judge(said) for judge in self._judges])
        return mapped(verdicts, lambda found: frozenset[str]().union(*found))


def _refuse(categories: frozenset[str]) -> None:
    if categories:
        raise ContentFiltered(categories)


def _withheld(answer: Answer, written: dict[str, Any], verdicts: Sequence[frozenset[str]]) -> Answer:
    """As OpenAI and Azure tell it: no content, its own reason to end, and the categories in Azure's shape."""
    if not any(verdicts):
        return answer
    for choice, categories in zip(written["choices"], verdicts, strict=True):
        if categories:
            logger.info("answer filtered", extra={"answer": written["id"], "categories": sorted(categories)})
            choice["message"] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
            choice["logprobs"] = None  # they spell the content
            choice["finish_reason"] = "content_filter"
            choice["content_filter_results"] = {
                category: {"filtered": True, "detected": True} for category in sorted(categories)
            }
    return replace(answer, body=orjson.dumps(written).decode())
