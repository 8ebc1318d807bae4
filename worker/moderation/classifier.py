"""A small text classifier beside the engine: an ONNX folder as Hugging Face exports them, run on one CPU thread.

A text longer than the model takes is judged in windows that overlap; what one of them shows, the text shows. What
waits is judged together, so that each text costs less the more there are.
"""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import tokenizers

from worker.engine import EngineStopped
from worker.moderation.conversation import Conversation
from worker.moderation.futures import settle
from worker.moderation.judge import JudgeFailed

logger = logging.getLogger(__name__)

WINDOWS_AT_ONCE: Final = 32
WINDOWS_A_RUN: Final = 8  # of about the same length, for the shorter are filled up

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labels:
    """What the outputs of a model mean, and from which probability on each is filtered; None: it never is."""

    names: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    is_exclusive: bool
    """Whether a text has exactly one label (softmax) or any number of them (sigmoid)."""

    def reached(self, logits: Floats) -> frozenset[str]:
        """The labels that some window of a text, (windows, labels), shows. JudgeFailed if these are no numbers."""
        if not np.isfinite(logits).all():
            raise JudgeFailed("the classifier gave something else than finite numbers")
        likeliest = self._probabilities(logits).max(axis=0)
        known = zip(self.names, self.thresholds, likeliest, strict=True)
        return frozenset(name for name, least, found in known if least is not None and found >= least)

    def _probabilities(self, logits: Floats) -> Floats:
        if self.is_exclusive:
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            return np.asarray(weights / weights.sum(axis=1, keepdims=True))
        return np.asarray(0.5 + 0.5 * np.tanh(logits / 2))  # the logistic function, which cannot overflow so


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A text, in its windows."""

    windows: Sequence[tokenizers.Encoding]
    verdict: Future[frozenset[str]] = field(default_factory=Future)


class Classifier:
    """Judges in the only thread of `executor`; `tokenizer` cuts what is too long for the model."""

    def __init__(
        self,
        session: ort.InferenceSession,
        tokenizer: tokenizers.Tokenizer,
        labels: Labels,
        executor: ThreadPoolExecutor,
        *,
        padding_id: int,
    ) -> None:
        self._session = session
        self._inputs = [one.name for one in session.get_inputs()]
        self._tokenizer = tokenizer
        self._labels = labels
        self._executor = executor
        self._padding_id = padding_id
        self._waiting: deque[Waiting] = deque()

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        """Knows nothing of what was said before. EngineStopped where the executor has ended."""
        whole = self._tokenizer.encode(said.text)
        text = Waiting([whole, *whole.overflowing])
        self._waiting.append(text)
        try:
            self._executor.submit(self._judge_waiting)  # once for each text, so that none is left waiting
        except RuntimeError as error:
            raise EngineStopped("the classifier takes no more texts") from error
        return text.verdict

    def stop(self) -> None:
        """Judge nothing more; what waits is cancelled."""
        self._executor.shutdown(cancel_futures=True)
        for text in self._waiting:
            text.verdict.cancel()

    def _judge_waiting(self) -> None:
        """Some of what waits, if an earlier call has left any. One text's fault does not cost the others."""
        texts = self._next_texts()
        try:
            verdicts = self._verdicts(texts)
        except Exception as error:  # noqa: BLE001  whatever it is, it is told to the text that it concerns
            logger.warning("texts judged one by one", extra={"texts": len(texts), "reason": str(error)})
            for text in texts:
                settle(text.verdict, partial(self._verdict, text))
        else:
            for text, verdict in zip(texts, verdicts, strict=True):
                settle(text.verdict, partial(frozenset, verdict))

    def _next_texts(self) -> list[Waiting]:
        texts: list[Waiting] = []
        while self._waiting and sum(len(text.windows) for text in texts) < WINDOWS_AT_ONCE:
            texts.append(self._waiting.popleft())
        return texts

    def _verdict(self, text: Waiting) -> frozenset[str]:
        (verdict,) = self._verdicts([text])
        return verdict

    def _verdicts(self, texts: Sequence[Waiting]) -> list[frozenset[str]]:
        if not texts:
            return []
        logits = self._logits([window for text in texts for window in text.windows])
        ends = np.cumsum([len(text.windows) for text in texts])
        return [self._labels.reached(own) for own in np.split(logits, ends[:-1])]

    def _logits(self, windows: Sequence[tokenizers.Encoding]) -> Floats:
        """(windows, labels)."""
        by_length = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
        runs = [by_length[begin : begin + WINDOWS_A_RUN] for begin in range(0, len(windows), WINDOWS_A_RUN)]
        found = np.concatenate([self._run([windows[index] for index in run]) for run in runs])
        return np.asarray(found[np.argsort(by_length)])

    def _run(self, windows: Sequence[tokenizers.Encoding]) -> Floats:
        columns = {
            "input_ids": _rows([window.ids for window in windows], self._padding_id),
            "attention_mask": _rows([window.attention_mask for window in windows], 0),
            "token_type_ids": _rows([window.type_ids for window in windows], 0),
        }
        logits = self._session.run(None, {name: columns[name] for name in self._inputs})[0]
        if logits.shape != (len(windows), len(self._labels.names)):
            raise JudgeFailed(f"the classifier gave {logits.shape} for {len(self._labels.names)} labels")
        return np.asarray(logits, np.float64)


def _rows(ragged: Sequence[Sequence[int]], filling: int) -> npt.NDArray[Any]:
    rows = np.full((len(ragged), max(map(len, ragged))), filling, np.int64)
    for row, known in zip(rows, ragged, strict=True):
        row[: len(known)] = known
    return rows
