"""The order of work: every line once, lines that begin alike side by side, otherwise as in the file."""

import random

from hypothesis import given
from hypothesis import strategies as st

from jobs import order
from jobs.order import Order
from jobs.seen import Seen


def ordered(texts: list[str], size: int = 7) -> list[list[int]]:
    """The chunks of lines numbered from 1."""
    lines = Order()
    for line_no, text in enumerate(texts, start=1):
        lines.add(line_no, [{"role": "user", "content": text}])
    return list(lines.chunks(size))


def test_chunks_hold_every_line_once_in_groups_of_shared_text() -> None:
    chunks = ordered([("S" * 300 if n % 3 else "T" * 70) + f" {n}" for n in range(30)])
    flat = [n for chunk in chunks for n in chunk]
    assert sorted(flat) == list(range(1, 31))
    assert [(n - 1) % 3 == 0 for n in flat] == [True] * 10 + [False] * 20
    assert all(len(chunk) == 7 for chunk in chunks[:-1])


def test_a_file_without_shared_text_is_worked_from_its_top() -> None:
    pick = random.Random(1)
    texts = [f"{pick.random()} " * 30 for _ in range(200)]
    assert [n for chunk in ordered(texts) for n in chunk] == list(range(1, 201))


@given(st.lists(st.text("ab", max_size=3), max_size=25), st.integers(1, 9))
def test_the_order_is_that_of_the_first_line_of_each_group_at_each_depth(marks: list[str], size: int) -> None:
    """Held against the plain rule, spelled out over the texts themselves."""
    widths = (10, 100, 500, 2_000)
    texts = [
        "".join(mark.ljust(width, "-") for mark, width in zip(m.ljust(4, "-"), widths, strict=True)) for m in marks
    ]
    shown = [f"\x1euser\x1f{text}" for text in texts]
    first: dict[str, int] = {}
    for place, text in enumerate(shown):
        for depth in order.DEPTHS:
            first.setdefault(text[:depth], place)
    expected = sorted(
        range(len(shown)), key=lambda place: [*(first[shown[place][:depth]] for depth in order.DEPTHS), place]
    )
    assert [n - 1 for chunk in ordered(texts, size) for n in chunk] == expected


def test_messages_of_any_form_have_a_place() -> None:
    lines = Order()
    for line_no, messages in enumerate(("text", [], [1], [{"role": 1, "content": [{"type": "text"}]}]), start=1):
        lines.add(line_no, messages)
    assert [n for chunk in lines.chunks(2) for n in chunk] == [1, 2, 3, 4]


@given(st.lists(st.text(max_size=2), max_size=60))
def test_a_text_is_new_once(texts: list[str]) -> None:
    seen, known = Seen(60), set[str]()
    for text in texts:
        assert seen.add(text) == (text not in known)
        known.add(text)
