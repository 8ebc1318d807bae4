"""What tokens say, where it depends on how their tokenizer writes text."""

from tests.worker.model.test_sentence_piece import GEMMA, LLAMA, TOKENS
from worker.chat import reading
from worker.chat.reading import Reading
from worker.chat.tools import families
from worker.engine import Completion, FinishReason
from worker.model import Tokenizer


def content(tokenizer: Tokenizer, *tokens: str) -> str | None:
    how = Reading(stops=(), thoughts=None, offer=None, call_id=lambda choice, place: f"{choice}.{place}")
    ids = tuple(TOKENS.index(token) for token in tokens)
    written = Completion(ids, FinishReason.STOP, prompt_tokens=1, cached_tokens=0, output_tokens=len(ids))
    family = families.of_template("", knows_tools=False).family
    return reading.read(written, 0, how, tokenizer=tokenizer, family=family, call_bytes=tokenizer.token_bytes).content


def test_the_space_that_the_tokenizer_puts_before_every_text_is_not_told() -> None:
    assert content(LLAMA, "▁hello", "▁he") == "hello he"
    assert content(LLAMA, "▁", "▁he") == " he"
    assert content(GEMMA, "▁hello") == " hello"
