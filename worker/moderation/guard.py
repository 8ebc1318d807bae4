"""A guard model: a language model that was trained to judge, asked through an engine of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from worker.engine import Completion, Prompt, Sampling
from worker.model import Tokenizer
from worker.moderation.conversation import Conversation, Turn
from worker.moderation.futures import gathered, mapped
from worker.moderation.guard_formats import GuardFormat
from worker.moderation.windows import windows

OVERLAP_TOKENS: Final = 64
SPARE_TOKENS: Final = 16  # for a window whose text is cut into other tokens than it was


class Guard:
    """Judges the last turn in the light of those before; where all do not fit, by itself and in windows."""

    def __init__(
        self,
        submit: Callable[[Prompt], Future[list[Completion]]],
        tokenizer: Tokenizer,
        form: GuardFormat,
        *,
        context_tokens: int,
    ) -> None:
        """`submit` as an engine's, whose longest prompt and answer is `context_tokens`."""
        self._submit = submit
        self._tokenizer = tokenizer
        self._format = form
        self._prompt_tokens_max = context_tokens - form.answer_tokens_max

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        """One question, or one for each window."""
        asked = [mapped(self._submit(self._prompt(ids)), self._read) for ids in self._questions(said.turns)]
        return mapped(gathered(asked), lambda verdicts: frozenset().union(*verdicts))

    def _questions(self, turns: Sequence[Turn]) -> Iterator[list[int]]:
        whole = self._question(turns)
        if len(whole) <= self._prompt_tokens_max:
            yield whole
            return
        last = turns[-1]
        frame_tokens = len(self._question([Turn(last.speaker, "")]))
        ids = self._tokenizer.encode_plain(last.text)
        room = self._prompt_tokens_max - frame_tokens - SPARE_TOKENS
        for window in windows(len(ids), size=room, overlap=OVERLAP_TOKENS):
            yield self._question([Turn(last.speaker, self._tokenizer.decode(ids[window]))])

    def _question(self, turns: Sequence[Turn]) -> list[int]:
        shielded = [Turn(turn.speaker, self._tokenizer.shield(turn.text)) for turn in turns]
        return self._tokenizer.encode_template(self._format.prompt(shielded))

    def _prompt(self, token_ids: list[int]) -> Prompt:
        return Prompt(
            token_ids=token_ids,
            sampling=Sampling(seed=0, temperature=0),
            tokens_max=self._format.answer_tokens_max,
            stop_token_ids=frozenset(self._tokenizer.eos_token_ids),
        )

    def _read(self, completions: Sequence[Completion]) -> frozenset[str]:
        return self._format.categories(self._tokenizer.decode(completions[0].token_ids))
