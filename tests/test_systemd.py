"""deploy/systemd, held against the commands and settings that really exist."""

import configparser
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.test_compose import parse

FOLDER = Path(__file__).parents[1] / "deploy" / "systemd"
PROGRAM = "/opt/gristmill/bin/gristmill"


def read(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / name)
    return unit


UNITS = {path.name: read(path.name) for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_a_command_that_the_program_has(name: str) -> None:
    program, *words = UNITS[name]["Service"]["ExecStart"].replace("%i", "smollm2-135m").split()
    assert program == PROGRAM
    parse(words)


def test_what_dies_comes_back_and_has_time_to_stop() -> None:
    for name in ("gristmill-io.service", "gristmill-worker@.service"):
        assert int(UNITS[name]["Service"]["TimeoutStopSec"]) > Settings.read({}).drain_seconds
    for name, unit in UNITS.items():
        if name != "gristmill-migrate.service":
            assert unit["Service"]["Restart"] == "always"
            assert unit["Unit"]["Requires"] == "gristmill-migrate.service"
            assert "gristmill-migrate.service" in unit["Unit"]["After"].split()
    assert UNITS["gristmill-migrate.service"]["Service"]["Type"] == "oneshot"


def test_the_page_names_each_unit() -> None:
    page = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
    for name in UNITS:
        assert name.removesuffix(".service").rstrip("@") in page
