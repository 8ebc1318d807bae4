"""SentencePiece's BPE: spaces are signs, unknown signs are bytes, control tokens come from templates only."""

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from worker.model import Tokenizer, sentence_piece

CONTROL = ["<bos>", "<turn>"]
WHOLE = ["▁▁", "\n\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "h", "e", "l", "o", "\n", "he", "ll", "llo", "▁he", "▁hello", "el"]
TOKENS = ["<unk>", *CONTROL, *BYTES, *PIECES, *WHOLE]
SCORES = [-float(index) for index in range(len(TOKENS))]


def build(*, begins_with_space: bool) -> tokenizers.Tokenizer:
    return sentence_piece.build(
        TOKENS,
        SCORES,
        unknown="<unk>",
        control=[TOKENS.index(token) for token in CONTROL],
        whole=[TOKENS.index(token) for token in WHOLE],
        begins_with_space=begins_with_space,
    )


def wrap(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(backend, vocabulary=len(TOKENS), eos_token_ids=(2,))


GEMMA, LLAMA = wrap(build(begins_with_space=False)), wrap(build(begins_with_space=True))


def names(tokenizer: Tokenizer, text: str) -> list[str]:
    return [TOKENS[index] for index in tokenizer.encode_template(text)]


def test_neighbours_of_the_best_score_are_joined_first() -> None:
    assert names(GEMMA, "hello") == ["he", "llo"]
    assert names(GEMMA, " hello hell") == ["▁hello", "▁he", "ll"]
    assert names(GEMMA, "el") == ["el"]


def test_a_space_is_put_before_every_text_where_the_model_wants_it() -> None:
    assert names(LLAMA, "hello<turn>he") == ["▁hello", "<turn>", "▁he"]
    assert names(GEMMA, "hello<turn>he") == ["he", "llo", "<turn>", "he"]


def test_the_space_that_is_put_before_every_text_is_dropped_where_texts_are_told() -> None:
    assert (LLAMA.drops_first_space, GEMMA.drops_first_space) == (True, False)


def test_a_sign_without_a_token_becomes_its_bytes() -> None:
    assert names(GEMMA, "é") == ["<0xC3>", "<0xA9>"]


@given(st.text() | st.lists(st.sampled_from(["hello", " ", "\n\n", "<turn>", "<0x41>", "▁"])).map("".join))
def test_ids_give_the_text_back(text: str) -> None:
    """The sign for a space is one, whoever writes it."""
    ids = GEMMA.encode_template(GEMMA.shield(text))
    assert GEMMA.special_token_ids.isdisjoint(ids)
    if "<0x" not in text:
        assert GEMMA.decode(ids) == text.replace("▁", " ")


@given(st.lists(st.sampled_from(["hello", " he", "\n\n", "  ", "é😀", "<turn>", "<bos>"])).map("".join))
def test_a_template_has_the_ids_of_its_whole_text(text: str) -> None:
    """We encode it piece by piece, the library at once."""
    for begins_with_space in (False, True):
        backend = build(begins_with_space=begins_with_space)
        assert wrap(build(begins_with_space=begins_with_space)).encode_template(text) == backend.encode(text).ids


def metaspace() -> tokenizers.Tokenizer:
    """As newer files of Llama 2 and Mistral have it: a space only before the very first word."""
    pieces = {token: index for index, token in enumerate(TOKENS)}
    backend = tokenizers.Tokenizer(models.BPE(pieces, [("h", "e"), ("▁", "he")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<turn>", special=True, normalized=False, rstrip=True)])
    return backend


@given(st.lists(st.sampled_from(["he", " he", "\n", "  ", "<turn>"])).map("".join))
def test_a_space_before_the_first_word_only_and_blanks_behind_a_token_are_as_in_the_library(text: str) -> None:
    assert wrap(metaspace()).encode_template(text) == metaspace().encode(text).ids
