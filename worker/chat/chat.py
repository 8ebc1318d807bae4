"""The body of a chat completion becomes a prompt for the engine, and the engine's tokens its answer."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import orjson

from jobs.contract import chat
from jobs.contract.chat import ChatCompletion
from jobs.errors import BadRequest, Refusal, TooLong
from worker.chat import reading, structure
from worker.chat.answer import Answer, AnsweredChoice, completion_json, usage_of
from worker.chat.grammar import Grammars
from worker.chat.pieces import Publish
from worker.chat.reading import Reading
from worker.chat.speech import Speech
from worker.chat.structure import Structure
from worker.chat.tools import offer as offers
from worker.chat.tools.offer import Offer
from worker.chat.watching import Watching, hold_of
from worker.engine import Completion, FinishReason, Prompt, Sampling
from worker.model import ModelFolder

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Question:
    """A body that is to be asked; `Chat.prompt` says what the rest is for."""

    body: dict[str, object]
    seed_text: str
    publish: Publish | None = None


@dataclass(frozen=True, slots=True)
class _Understood:
    question: Question
    wanted: ChatCompletion
    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and what must be remembered of its body to write the answer."""

    prompt: Prompt
    answer_id: str
    model: str
    reading: Reading
    structure: Structure | None = None
    """What a choice must say that comes to its own end and calls nothing."""
    is_read: bool = False
    """Someone reads the text while it is written."""
    is_last: bool = False
    """It was asked again already."""

    def again(self) -> "Asked | None":
        """The same with other noise, which this one's decides; None where it would not help or comes too late."""
        sampling = self.prompt.sampling
        if self.is_last or self.is_read or sampling.is_greedy:
            return None
        other = replace(sampling, seed=_seed(f"again:{sampling.seed}"))
        return replace(self, prompt=replace(self.prompt, sampling=other), is_last=True)


class Chat:
    """Speaks for one model; built once in a process, safe to use from several threads."""

    def __init__(self, model: ModelFolder, *, context_tokens: int, fingerprint: str) -> None:
        self._context_tokens = context_tokens
        self._fingerprint = fingerprint
        self._tokenizer = model.tokenizer()
        self._stop_token_ids = frozenset(self._tokenizer.eos_token_ids)
        self._grammars = Grammars(self._tokenizer)
        self._speech = Speech(model, self._tokenizer)

    def prompt(
        self,
        body: dict[str, object],
        *,
        seed_text: str,
        created: datetime,
        priority: int = 0,
        publish: Publish | None = None,
    ) -> Asked:
        """What to ask the engine. A Refusal of status 400 names what is wrong with the body.

        The same `seed_text` gives the same id and, where the body has no seed, the same noise. `created` is
        the time a template sees. `publish` is called on the engine's thread with the text as it is written.
        """
        (asked,) = self.prompts([Question(body, seed_text, publish)], created=created, priority=priority)
        if isinstance(asked, Refusal):
            raise asked
        return asked

    def prompts(self, questions: Sequence[Question], *, created: datetime, priority: int = 0) -> list[Asked | Refusal]:
        """As `prompt`, for many; the Refusal of one stands in its place.

        Each step is taken for all of them in turn: a processor takes two thirds of the time for what it has just done.
        """
        understood = _each(self._understand, questions)
        said = _each(lambda one: (one, self._speech.prompt_text(one.wanted, one.offer, created)), understood)
        encoded = _each(lambda one: (one[0], self._speech.encode(one[1])), said)
        return _each(lambda one: self._ask(*one, priority), encoded)

    def answer(self, asked: Asked, completions: Sequence[Completion], *, created_at: int) -> Answer:
        """The body to send; `created_at` in seconds since 1970. `Missed` where a text has not the form asked for."""
        choices = [self._choice(asked, place, one) for place, one in enumerate(completions)]
        usage = usage_of(completions, choices)
        body = completion_json(
            answer_id=asked.answer_id,
            created_at=created_at,
            model=asked.model,
            fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )
        return Answer(body, usage)

    def _understand(self, question: Question) -> _Understood:
        wanted = _read(question.body)
        self._refuse_unknown_tokens(wanted)
        return _Understood(question, wanted, offers.of(wanted))

    def _ask(self, understood: _Understood, token_ids: list[int], priority: int) -> Asked:
        question, wanted, offer = understood.question, understood.wanted, understood.offer
        form = structure.asked_for(wanted, self._grammars)
        hold = hold_of(offer, form.grammar if form else None, self._speech, self._grammars)
        thoughts = self._speech.thoughts(token_ids, wanted.thinking_tokens_max, is_held=hold.is_from_start)
        stop_bytes = tuple(stop.encode() for stop in wanted.stops)
        watching = Watching(self._tokenizer, self._speech, offer, hold, stop_bytes, question.publish)
        prompt = Prompt(
            token_ids=token_ids,
            sampling=_sampling(wanted, question.seed_text),
            tokens_max=self._tokens_max(wanted, len(token_ids)),
            tokens_min=wanted.min_tokens or 0,
            choices=wanted.n or 1,
            stop_token_ids=self._stops(wanted),
            priority=priority,
            top_logprobs=(wanted.top_logprobs or 0) if wanted.logprobs else None,
            watch=watching.maker(thoughts),
        )
        how = Reading(stop_bytes, thoughts, offer, partial(_call_id, question.seed_text))
        return Asked(
            prompt,
            f"chatcmpl-{_digest('id', question.seed_text).hex()[:32]}",
            wanted.model,
            how,
            structure=None if wanted.stops or wanted.stop_token_ids or (offer and offer.is_forced) else form,
            is_read=question.publish is not None,
        )

    def _tokens_max(self, wanted: ChatCompletion, prompt_tokens: int) -> int:
        """The longest answer for which there is room; one token is the least. BadRequest for a prompt of none, and, in
        OpenAI's words, for more than there could be after any prompt.
        """
        if not prompt_tokens:
            raise BadRequest("These messages come to a prompt without tokens.", code="invalid_value", param="messages")
        room = self._context_tokens - prompt_tokens
        asked = wanted.answer_tokens_max
        if asked is not None and asked > self._context_tokens:
            name = "max_completion_tokens" if wanted.max_completion_tokens else "max_tokens"
            raise BadRequest(
                f"{name} is too large: {asked}. This model supports at most {self._context_tokens} completion tokens, "
                f"whereas you provided {asked}.",
                code="invalid_value",
                param=name,
            )
        if room < 1:
            raise TooLong(context_tokens=self._context_tokens, prompt_tokens=prompt_tokens, answer_tokens=asked or 1)
        return min(asked or room, room)

    def _stops(self, wanted: ChatCompletion) -> frozenset[int]:
        """The tokens that end an answer: the model's own, unless they are to be ignored, and those of the body."""
        own: frozenset[int] = frozenset() if wanted.ignore_eos else self._stop_token_ids
        return own.union(wanted.stop_token_ids or ())

    def _refuse_unknown_tokens(self, wanted: ChatCompletion) -> None:
        """In OpenAI's words where it has some."""
        last = self._tokenizer.vocabulary - 1
        if (token_id := max(wanted.biases, default=0)) > last:
            raise BadRequest(f"Invalid key in 'logit_bias': {token_id}. Maximum value is {last}.", param="logit_bias")
        if (token_id := max(wanted.stop_token_ids or (), default=0)) > last:
            raise BadRequest(
                f"Invalid value in 'stop_token_ids': {token_id}. Maximum value is {last}.",
                code="invalid_value",
                param="stop_token_ids",
            )

    def _choice(self, asked: Asked, choice: int, completion: Completion) -> AnsweredChoice:
        answered = reading.read(
            completion,
            choice,
            asked.reading,
            tokenizer=self._tokenizer,
            family=self._speech.family,
            call_bytes=self._speech.call_bytes,
        )
        if asked.structure is not None and completion.finish_reason is FinishReason.STOP and not answered.calls:
            asked.structure.check(answered.content or "")
        return answered


def _each(step: Callable[[Given], Made], ones: Iterable[Given | Refusal]) -> list[Made | Refusal]:
    """Take a step for each, but for those that are refused already; where it refuses one, the Refusal stands there."""
    made: list[Made | Refusal] = []
    for one in ones:
        if isinstance(one, Refusal):
            made.append(one)
            continue
        try:
            made.append(step(one))
        except Refusal as refusal:
            made.append(refusal)
    return made


def _read(body: dict[str, object]) -> ChatCompletion:
    try:
        wanted = chat.read(body)
        orjson.dumps(body)  # what cannot be sent back, such as half a surrogate pair, cannot be text
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise BadRequest(f"This body is not parseable as valid JSON: {error}.") from error
    if _is_json(wanted) and not any("json" in message.text().lower() for message in wanted.messages):
        raise BadRequest(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param="messages",
        )
    return wanted


def _is_json(wanted: ChatCompletion) -> bool:
    return wanted.response_format is not None and wanted.response_format.type == "json_object"


def _sampling(wanted: ChatCompletion, seed_text: str) -> Sampling:
    seed = _seed(seed_text) if wanted.seed is None else wanted.seed
    return Sampling(
        seed=seed % 2**64,
        temperature=1.0 if wanted.temperature is None else wanted.temperature,
        top_p=1.0 if wanted.top_p is None else wanted.top_p,
        top_k=max(0, wanted.top_k or 0),
        min_p=wanted.min_p or 0.0,
        presence_penalty=wanted.presence_penalty or 0.0,
        frequency_penalty=wanted.frequency_penalty or 0.0,
        repetition_penalty=1.0 if wanted.repetition_penalty is None else wanted.repetition_penalty,
        logit_bias=tuple(wanted.biases.items()),
    )


def _seed(text: str) -> int:
    return int.from_bytes(_digest("seed", text)[:8])


def _digest(purpose: str, seed_text: str) -> bytes:
    """Two purposes share no bytes: an id must not give the noise away."""
    return hashlib.sha256(f"{purpose}:{seed_text}".encode()).digest()


def _call_id(seed_text: str, choice: int, place: int) -> str:
    return f"call_{_digest(f'call:{choice}:{place}', seed_text).hex()[:24]}"
