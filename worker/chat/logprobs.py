"""The log-probabilities of an answer on the wire: `choices[].logprobs`, as OpenAI gives them."""

from itertools import accumulate
from typing import Final

from worker.engine import Completion
from worker.model import Tokenizer

# OpenAI's figure for "very unlikely": JSON knows no infinity.
LEAST: Final = -9999.0


def logprobs_of(completion: Completion, tokenizer: Tokenizer, *, text_bytes: int) -> dict[str, object] | None:
    """One entry for each token that begins in the first `text_bytes` of what was written: of a stop string only a
    token that begins before it is told. None if the completion has none.
    """
    if completion.logprobs is None:
        return None
    ends = accumulate(len(tokenizer.token_bytes[token_id]) for token_id in completion.token_ids)
    begins = [0, *ends]
    is_whole = begins[-1] == text_bytes
    told = zip(begins, completion.token_ids, completion.logprobs, strict=False)
    content = [
        {
            **_entry(token_id, logprob.logprob, tokenizer),
            "top_logprobs": [_entry(other, likely, tokenizer) for other, likely in logprob.top],
        }
        for begin, token_id, logprob in told
        if is_whole or begin < text_bytes
    ]
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, object]:
    """A control token is written as itself and adds no bytes to an answer; bytes that are not UTF-8 for
    themselves are written as escapes, such as `\\xf0\\x9f`.
    """
    known = max(logprob, LEAST)
    if token_id in tokenizer.special_token_ids:
        return {"token": tokenizer.token_text(token_id), "logprob": known, "bytes": None}
    written = tokenizer.token_bytes[token_id]
    return {"token": written.decode("utf-8", "backslashreplace"), "logprob": known, "bytes": list(written)}
