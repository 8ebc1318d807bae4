"""The server-sent events of a streamed chat completion. Pure: pieces and the stored answer in, bytes out."""

from collections.abc import Iterator

import orjson

from jobs.api.transcript import Transcript
from jobs.contract.chat import ChatCompletion
from jobs.contract.completion import Choice, Chunk, ChunkChoice, Completion, CompletionUsage, Delta
from jobs.contract.errors import envelope_json
from jobs.errors import Refusal
from jobs.streams import Piece

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: clients skip it, and whatever stands between sees life
DONE = b"data: [DONE]\n\n"


class Chunks:
    """Writes one stream. `opening` comes first, then any number of `piece`s, then `ending` or `broken`."""

    def __init__(self, order: ChatCompletion, *, completion_id: str, created: int) -> None:
        self._order = order
        self._id = completion_id
        self._created = created
        self._with_usage = order.stream_options is not None and order.stream_options.include_usage is True
        self._transcript = Transcript()
        self._fingerprint: str | None = None

    def opening(self) -> Iterator[bytes]:
        """Who speaks, once for each choice."""
        for index in range(self._order.n or 1):
            yield self._chunk(index, Delta(role="assistant", content=""))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """What a piece adds, if anything."""
        if 0 <= piece.choice < (self._order.n or 1) and (text := self._transcript.add(piece)):
            yield self._chunk(piece.choice, _thought(text) if piece.is_thinking else Delta(content=text))

    def ending(self, stored: Completion) -> Iterator[bytes]:
        """All of the stored answer that was not sent yet, how each choice ended, and that this is all."""
        self._fingerprint = stored.system_fingerprint
        for choice in stored.choices:
            yield from self._rest(choice)
        for choice in stored.choices:
            yield self._end(choice)
        if self._with_usage:
            yield self._event([], stored.usage)
        yield DONE

    def broken(self, refusal: Refusal) -> Iterator[bytes]:
        """A failure after the stream was begun, as clients know to raise it."""
        yield f"data: {envelope_json(refusal)}\n\n".encode()

    def _rest(self, choice: Choice) -> Iterator[bytes]:
        message = choice.message
        if thought := self._transcript.rest(choice.index, message.reasoning_content or "", is_thinking=True):
            yield self._chunk(choice.index, _thought(thought))
        text = self._transcript.rest(choice.index, message.content or "")
        if text or choice.logprobs:
            yield self._chunk(choice.index, Delta(content=text), logprobs=choice.logprobs)
        if message.refusal:
            yield self._chunk(choice.index, Delta(refusal=message.refusal))
        if message.function_call:
            yield self._chunk(choice.index, Delta(function_call=message.function_call))
        for place, call in enumerate(message.tool_calls or ()):
            yield self._chunk(choice.index, Delta(tool_calls=[{"index": place, **call}]))

    def _chunk(self, index: int, delta: Delta, *, logprobs: dict[str, object] | None = None) -> bytes:
        return self._event([ChunkChoice(index=index, delta=delta, logprobs=logprobs)])

    def _end(self, choice: Choice) -> bytes:
        end = ChunkChoice(
            index=choice.index,
            delta=Delta(),
            finish_reason=choice.finish_reason,
            content_filter_results=choice.content_filter_results,
        )
        return self._event([end])

    def _event(self, choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> bytes:
        """`usage` is null until its own chunk where it was asked for, and else not there at all."""
        chunk = Chunk(
            id=self._id,
            created=self._created,
            model=self._order.model,
            choices=choices,
            usage=usage,
            service_tier="default",
            system_fingerprint=self._fingerprint,
        )
        content = chunk.model_dump(exclude=None if self._with_usage else {"usage"})
        for choice in content["choices"]:
            choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
            if choice["content_filter_results"] is None:
                del choice["content_filter_results"]
        return b"data: " + orjson.dumps(content) + b"\n\n"


def _thought(text: str) -> Delta:
    """Under both of its names, as in an answer."""
    return Delta(reasoning_content=text, reasoning=text)
