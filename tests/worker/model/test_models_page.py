"""docs/models.md tells what the code does."""

import re
from pathlib import Path

from worker.model import architectures

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
SOURCE = Path(architectures.__file__).read_text("utf-8")


def test_the_table_has_every_architecture() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == architectures.ARCHITECTURES.keys()


def test_the_example_is_what_the_code_says() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    function, entry = example.split("ARCHITECTURES = {")
    assert function.strip() in SOURCE
    assert entry.strip().removeprefix("...").strip() in SOURCE
