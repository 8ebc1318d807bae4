"""What is published of an answer while it is written: always a beginning of it, and all but what may still change."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jobs.api.transcript import Transcript
from jobs.streams import Piece
from tests.worker.chat.asking import CREATED, ask, body
from worker.chat import Chat, stops
from worker.chat.pieces import Pieces
from worker.chat.stops import StopWatcher
from worker.chat.watchers import Together

texts = st.text("abé😀\n", max_size=8)
stop_texts = st.lists(st.text("abé😀\n", min_size=1, max_size=5), max_size=4)


class Heard:
    """Pieces that are only written down."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def __call__(self, choice: int, text: str, *, start: int) -> None:
        self.pieces.append(Piece(choice, start, text))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def write(tokens: list[bytes], stop_bytes: list[bytes]) -> tuple[Heard, str]:
    """What is published of these tokens until a stop string ends them, and the answer."""
    heard = Heard()
    ends = [StopWatcher(stop_bytes, tokens)] if stop_bytes else []
    watcher = Together([*ends, Pieces(heard, 0, stop_bytes, tokens)])
    written = b""
    for token_id, token in enumerate(tokens):
        written += token
        if not watcher.accept(token_id):
            break
    watcher.finish()
    return heard, stops.cut(written, stop_bytes).decode("utf-8", "replace")


def cut_at(content: bytes, places: list[int]) -> list[bytes]:
    """The same bytes as tokens, also inside of a sign."""
    edges = [0, *sorted(place for place in places if place <= len(content)), len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


@given(texts, stop_texts, st.lists(st.integers(0, 32), max_size=16))
def test_what_is_published_begins_the_answer_wherever_tokens_and_stops_lie(
    text: str, found_stops: list[str], places: list[int]
) -> None:
    heard, answer = write(cut_at(text.encode(), places), [stop.encode() for stop in found_stops])
    assert answer.startswith(heard.text)
    assert [piece.start for piece in heard.pieces] == [
        sum(len(before.text) for before in heard.pieces[:index]) for index in range(len(heard.pieces))
    ]


@given(st.text(" aé", max_size=8), st.lists(st.integers(0, 32), max_size=16))
def test_the_space_before_a_text_is_dropped_once_where_the_answer_drops_it(text: str, places: list[int]) -> None:
    heard, tokens = Heard(), cut_at(text.encode(), places)
    pieces = Pieces(heard, 0, [], tokens, drops_first_space=True)
    assert all(pieces.accept(token_id) for token_id in range(len(tokens)))
    assert heard.text == text.removeprefix(" ")
    assert [piece.start for piece in heard.pieces][:1] in ([], [0])


@given(st.lists(st.binary(max_size=5), max_size=12), st.lists(st.binary(min_size=1, max_size=3), max_size=2))
def test_bytes_that_are_no_text_are_replaced_as_in_the_answer(tokens: list[bytes], stop_bytes: list[bytes]) -> None:
    heard, answer = write(tokens, stop_bytes)
    assert answer.startswith(heard.text)


@given(texts, stop_texts, st.lists(st.integers(0, 32), max_size=16))
def test_a_reader_gets_the_answer_from_the_pieces_and_its_rest(
    text: str, found_stops: list[str], places: list[int]
) -> None:
    heard, answer = write(cut_at(text.encode(), places), [stop.encode() for stop in found_stops])
    reader = Transcript()
    assert "".join(reader.add(piece) for piece in heard.pieces) + reader.rest(0, answer) == answer


@given(texts, stop_texts)
def test_no_more_is_held_than_may_begin_a_stop_string(text: str, found_stops: list[str]) -> None:
    content, stop_bytes = text.encode(), [stop.encode() for stop in found_stops]
    heard, answer = write([bytes([byte]) for byte in content], stop_bytes)
    if len(answer) < len(text):
        return  # a stop string ended it, and was held
    held = answer.removeprefix(heard.text).encode()
    assert not held or any(stop.startswith(held) and stop != held for stop in stop_bytes)


def test_without_stop_strings_each_token_is_published_at_once() -> None:
    heard, _ = write([b"one", b" ", b"word"], [])
    assert heard.pieces == [Piece(0, 0, "one"), Piece(0, 3, " "), Piece(0, 4, "word")]


def test_a_sign_is_published_when_its_last_byte_is_there_and_counts_once() -> None:
    sign = "😀".encode()
    heard, _ = write([b"a", sign[:1], sign[1:3], sign[3:], b"b"], [])
    assert heard.pieces == [Piece(0, 0, "a"), Piece(0, 1, "😀"), Piece(0, 2, "b")]


def test_what_may_begin_a_stop_string_waits_until_it_cannot() -> None:
    heard, _ = write([b"aE", b"N", b"x"], [b"END"])
    assert heard.pieces == [Piece(0, 0, "a"), Piece(0, 1, "ENx")]


def test_a_stop_string_may_begin_inside_of_its_own_false_beginning() -> None:
    """`aaa` may still become `a`, with `aab` cut off."""
    for stop in (b"aab", b"abab!", b"aabaaab"):
        content = stop[:1] * 2 + stop[:-1] + stop
        heard, answer = write([bytes([byte]) for byte in content], [stop])
        assert answer.startswith(heard.text)
    assert write([b"a"] * 3 + [b"b"], [b"aab"])[0].text == "a"


def test_a_line_begun_again_is_published_from_its_start_and_each_choice_apart(chat: Chat) -> None:
    heard = Heard()
    asked = chat.prompt(body(n=2, stop="!"), seed_text="a", created=CREATED, publish=heard)
    assert asked.prompt.watch is not None
    ids = chat._tokenizer.encode_plain("ab")
    for choice in (0, 1, 0):
        watcher = asked.prompt.watch(choice)
        assert [watcher.accept(index) for index in ids] == [True, True]
        watcher.finish()
    once = [(0, "a"), (1, "b")]
    assert [(piece.choice, piece.start, piece.text) for piece in heard.pieces] == [
        (choice, *rest) for choice in (0, 1, 0) for rest in once
    ]


def test_what_nobody_reads_along_is_not_watched(chat: Chat) -> None:
    assert ask(chat, stream=True).prompt.watch is None
