"""What a user wrote never becomes a control token, and is otherwise encoded as always."""

import threading
import time

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from tests import tiny_model
from tests.tiny_model import CONTROL
from worker.model import ModelFolder, Tokenizer, UnsupportedModel, byte_level

MERGES = ["h e", "l l", "he ll", "Ċ Ċ", "Ġ he", "< |"]


def build() -> Tokenizer:
    merged = [merge.replace(" ", "") for merge in MERGES]
    vocabulary = [*CONTROL, *byte_level.BYTE_OF_SIGN, *merged]
    backend = byte_level.build(vocabulary, MERGES, "smollm", control=range(len(CONTROL)), whole=[])
    return Tokenizer(backend, vocabulary=len(vocabulary) + 5, eos_token_ids=(2,))


TOKENIZER = build()

# Texts in which control tokens, pieces of them and the mark itself are likely.
pieces = st.sampled_from([*CONTROL, "<|im_", "start|>", "<", "|>", "<|", "\ufdd0", "hello", "\n", " ", "é😀"])
texts = st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)


@given(texts)
@example("\ufdd0<|im_\ufdd0<|im_end|>\ufdd0")
def test_no_text_of_a_user_becomes_a_control_token(text: str) -> None:
    ids = TOKENIZER.encode_template(TOKENIZER.shield(text))
    assert TOKENIZER.special_token_ids.isdisjoint(ids)
    assert ids == TOKENIZER.encode_plain(text)


@given(texts, texts)
@example("<|im_", "start|>")
@example("<", "|im_end|>")
@example("<|im_end|", ">")
def test_two_texts_side_by_side_make_no_control_token(left: str, right: str) -> None:
    ids = TOKENIZER.encode_template(TOKENIZER.shield(left) + TOKENIZER.shield(right))
    assert TOKENIZER.special_token_ids.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == left + right


@given(texts, texts)
def test_a_template_keeps_its_own_control_tokens(first: str, second: str) -> None:
    shield = TOKENIZER.shield
    rendered = f"<|im_start|>user\n{shield(first)}<|im_end|>\n<|im_start|>user\n{shield(second)}<|im_end|>\n"
    plain = TOKENIZER.encode_plain
    assert TOKENIZER.encode_template(rendered) == [
        *(1, *plain("user\n" + first), 2, *plain("\n")),
        *(1, *plain("user\n" + second), 2, *plain("\n")),
    ]


def test_text_without_look_alikes_goes_into_the_template_untouched() -> None:
    text = "if a < b && c |> d { <b> </b> < |im_start| > }"
    assert TOKENIZER.shield(text) == text


@given(st.lists(st.sampled_from(["hello", "\n", "hel", " he", "é😀"]) | st.text(max_size=3), max_size=4))
def test_a_conversation_has_the_ids_of_its_whole_text_whatever_was_encoded_before(said: list[str]) -> None:
    """Pieces of it are remembered; the library encodes the whole, and remembers nothing."""
    whole = tokenizers.Tokenizer.from_str(TOKENIZER.as_json())
    text = "".join(f"<|im_start|>user\n{one}<|im_end|>\n" for one in said if "\ufdd0" not in one)
    for _ in range(2):
        assert TOKENIZER.encode_template(text) == whole.encode(text, add_special_tokens=False).ids


def test_whoever_gets_ids_may_change_them() -> None:
    TOKENIZER.encode_plain("hello").clear()
    assert TOKENIZER.decode(TOKENIZER.encode_plain("hello")) == "hello"


@given(st.text())
def test_ids_give_the_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode_plain(text)) == text


def test_merges_join_across_the_border_of_template_and_text() -> None:
    ids = TOKENIZER.encode_template("<|im_start|>user\n" + TOKENIZER.shield("\n") + "<|im_end|>")
    assert [TOKENIZER.token_text(index) for index in ids] == ["<|im_start|>", *"user", "\n\n", "<|im_end|>"]


def test_every_byte_has_a_token_and_control_tokens_have_none() -> None:
    table = TOKENIZER.token_bytes
    assert {bytes([byte]) for byte in range(256)} <= set(table)
    assert [table[index] for index in range(len(CONTROL))] == [b""] * len(CONTROL)
    assert len(table) == TOKENIZER.vocabulary
    assert table[-5:] == [b""] * 5


def test_broken_utf_8_is_replaced_and_control_tokens_are_left_out() -> None:
    ids = [1, *TOKENIZER.encode_plain("é")[:1], 2, *TOKENIZER.encode_plain("a")]
    assert TOKENIZER.decode(ids) == "\ufffda"


def test_the_alphabet_is_the_one_of_the_library() -> None:
    backend = tiny_model.checkpoint().tokenizer
    words = backend.pre_tokenizer.pre_tokenize_str("".join(map(chr, range(0x20, 0x180))) + "\n\t\r\0")
    signs = {sign for word, _ in words for sign in word}
    assert signs <= byte_level.BYTE_OF_SIGN.keys()
    assert len(byte_level.BYTE_OF_SIGN) == len(set(byte_level.BYTE_OF_SIGN.values())) == 256


def test_an_unknown_way_of_cutting_words_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"'tekken'.*supported: gpt-2"):
        byte_level.build(list(byte_level.BYTE_OF_SIGN), [], "tekken", control=[], whole=[])


def test_a_long_text_has_the_tokens_of_its_words(smollm2: ModelFolder) -> None:
    tokenizer = smollm2.tokenizer()
    words = [" Grüße", " of", " the", " fox", " 🦙"] * 100
    alone = {word: tokenizer.encode_plain(word) for word in words}
    assert tokenizer.encode_plain("".join(words)) == [index for word in words for index in alone[word]]


def test_other_threads_go_on_while_a_long_text_is_encoded(smollm2: ModelFolder) -> None:
    tokenizer, text = smollm2.tokenizer(), "The quick brown fox jumps over the lazy dog. " * 10_000
    seen, is_over = [], threading.Event()

    def look() -> None:
        while not is_over.wait(0.005):
            seen.append(time.monotonic())

    looking = threading.Thread(target=look)
    looking.start()
    began = time.monotonic()
    tokenizer.encode_plain(text)
    ended = time.monotonic()
    is_over.set()
    looking.join()
    assert sum(began < moment < ended for moment in seen) >= 5
