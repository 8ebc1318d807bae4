"""What a reader of a stream is sent: the answer, once and in order, whatever becomes of the pieces."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.api.transcript import Transcript
from jobs.streams import Piece

TEXT = st.text(alphabet="ab", max_size=12)


@st.composite
def published(draw: st.DrawFn) -> tuple[str, list[Piece]]:
    """An answer, and pieces of it as they may arrive: some lost, some again, in any order."""
    whole = draw(TEXT)
    places = st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))
    cuts = draw(st.lists(places, max_size=8))
    return whole, [Piece(0, start, whole[start:stop]) for start, stop in cuts]


@given(published())
def test_whatever_pieces_arrive_the_text_is_exact(drawn: tuple[str, list[Piece]]) -> None:
    whole, pieces = drawn
    transcript = Transcript()
    sent = ""
    for piece in pieces:
        sent += transcript.add(piece)
        assert whole.startswith(sent)
    assert sent + transcript.rest(0, whole) == whole


@given(TEXT, st.integers(1, 4))
def test_pieces_that_all_arrive_leave_no_rest(whole: str, size: int) -> None:
    transcript = Transcript()
    for start in range(0, len(whole), size):
        assert transcript.add(Piece(0, start, whole[start : start + size])) == whole[start : start + size]
    assert transcript.rest(0, whole) == ""


def test_a_line_begun_again_is_not_sent_again() -> None:
    transcript = Transcript()
    assert transcript.add(Piece(0, 0, "one t")) == "one t"
    assert transcript.add(Piece(0, 0, "one")) == ""
    assert transcript.add(Piece(0, 3, " two")) == "wo"
    assert transcript.rest(0, "one two three") == " three"


def test_choices_do_not_mix() -> None:
    transcript = Transcript()
    assert transcript.add(Piece(0, 0, "a")) == "a"
    assert transcript.add(Piece(1, 0, "b")) == "b"
    assert (transcript.rest(0, "ax"), transcript.rest(1, "by")) == ("x", "y")


def test_where_the_answer_differs_what_follows_the_common_beginning_is_sent() -> None:
    transcript = Transcript()
    transcript.add(Piece(0, 0, "one too"))
    assert transcript.add(Piece(0, 3, " two")) == ""
    assert transcript.rest(0, "one two") == "wo"
