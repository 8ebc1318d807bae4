"""An operator's list of words and patterns."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.settings import SettingsError
from tests.worker.moderation.saying import said, verdict
from worker.moderation import words
from worker.moderation.words import WordList


def listed(folder: Path, content: str) -> WordList:
    path = folder / "words.txt"
    path.write_text(content, "utf-8")
    return words.read(path)


LIST = """
# Anything may be said of it.
bomb
get rich quick
c++
слово
/card\\s*number:?\\s*\\d{4}/

[hate]
Grobian
/\\b(un)?word\\b/
"""


@pytest.fixture
def known(tmp_path: Path) -> WordList:
    return listed(tmp_path, LIST)


@pytest.mark.parametrize(
    ("text", "categories"),
    [
        ("a bomb.", {"custom_blocklists"}),
        ("A BOMB!", {"custom_blocklists"}),
        ("bombastic, rhubomb, bomb_1 and bombé", set()),
        ("(bomb)", {"custom_blocklists"}),
        ("bomb", {"custom_blocklists"}),
        ("how to get\n  rich\u00a0quick", {"custom_blocklists"}),
        ("get rich slowly", set()),
        ("in C++, please", {"custom_blocklists"}),
        ("in c, please", set()),
        ("скажи Слово", {"custom_blocklists"}),
        ("словом", set()),
        ("Card number 1234", {"custom_blocklists"}),
        ("card number unknown", set()),
        ("ein grobian", {"hate"}),
        ("an unword, a bomb", {"hate", "custom_blocklists"}),
        ("", set()),
    ],
)
def test_whole_words_are_found_in_any_case_and_patterns_anywhere(
    known: WordList, text: str, categories: set[str]
) -> None:
    assert verdict(known, text) == categories


@pytest.mark.parametrize("text", ["a ｂｏｍｂ", "a bo\u200bmb", "a bo\u00admb", "a \u202ebomb\u202c", "a bomb\u2060"])
def test_a_word_is_found_behind_other_signs_for_the_same_letters(known: WordList, text: str) -> None:
    assert verdict(known, text) == {"custom_blocklists"}


def test_every_turn_that_is_to_be_judged_is_and_no_other(known: WordList) -> None:
    assert known.judge(said("bomb", "no", "no")).result(0)
    assert not known.judge(said("bomb", "no", "no", fresh=1)).result(0)


@given(before=st.text(max_size=40), after=st.text(max_size=40))
def test_a_word_is_found_wherever_it_stands_by_itself(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str
) -> None:
    known = listed(tmp_path_factory.mktemp("list"), "bomb")
    assert verdict(known, f"{before} bomb {after}") == {"custom_blocklists"}


def test_a_pattern_that_would_backtrack_for_ever_takes_no_time(tmp_path: Path) -> None:
    """Python's own `re` would need 2 ** 100,000 steps for this, and hold the interpreter all the while."""
    known = listed(tmp_path, "/(x+x+)+y/")
    begun = time.perf_counter()
    assert verdict(known, "x" * 100_000) == set()
    assert verdict(known, "x" * 100_000 + "y") == {"custom_blocklists"}
    assert time.perf_counter() - begun < 5


def test_ten_thousand_words_are_found_each(tmp_path: Path) -> None:
    many = [f"w{number * 7919 % 1_000_003}" for number in range(10_000)]
    known = listed(tmp_path, "\n".join(many))
    assert all(verdict(known, f"say {word} now") for word in many[::997])
    assert verdict(known, "w w1_ 7919 " * 100) == set()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("good\n/(/\n", r"words.txt, line 2, cannot be used: missing \)"),
        ("/(?=x)/", "line 1, cannot be used: invalid perl operator"),
        ("/x*/", "line 1, finds nothing in particular"),
        ("\u200b", "line 1, has no sign that shows"),
        ("# nothing\n[hate]\n", "has no words"),
        ("", "has no words"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        listed(tmp_path, content)


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        words.read(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="utf-8"):
        words.read(tmp_path / "words.txt")
