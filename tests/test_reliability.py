"""docs/reliability.md names the test that holds each promise, and there is one of that name."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_each_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert len(named) > 20
    assert named - defined == set()


def test_each_test_of_a_fault_holds_a_promise_of_the_page() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    files = (ROOT / "tests" / "faults").glob("test_*.py")
    defined = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert {name for name in defined if f"`{name}`" not in page} == {"test_there_is_a_crash_at_every_point"}
