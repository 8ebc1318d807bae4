"""deploy/systemd, read by systemd itself, and held against the commands and settings that really exist."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.test_compose import parse

FOLDER = Path(__file__).parents[1] / "deploy" / "systemd"
PAGE = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
PROGRAM = Path("/opt/gristmill/bin/gristmill")
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")
ANALYZE = shutil.which("systemd-analyze")


def read(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / name)
    return unit


UNITS = {path.name: read(path.name) for path in FOLDER.iterdir()}


@pytest.mark.parametrize("command", ["ExecStart", "ExecStartPre"])
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_a_command_that_the_program_has(name: str, command: str) -> None:
    program, *words = UNITS[name]["Service"][command].replace("%i", "smollm2-135m").split()
    assert program == str(PROGRAM)
    parse(words)


@pytest.mark.parametrize("name", UNITS)
def test_what_dies_comes_back_however_often_and_has_time_to_stop(name: str) -> None:
    unit, service = UNITS[name]["Unit"], UNITS[name]["Service"]
    assert (service["Restart"], service["RestartSec"]) == ("always", "1")
    assert unit["StartLimitIntervalSec"] == "0", "systemd would give up after five deaths in ten seconds"
    assert service["TimeoutStartSec"] == "infinity", "a migration of large tables may take long"
    if name != "gristmill-api.service":
        assert int(service["TimeoutStopSec"]) > Settings.read({}).drain_seconds


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_may_write_where_the_page_puts_the_data_and_nowhere_else(name: str) -> None:
    service = UNITS[name]["Service"]
    folder = re.search(r"GRISTMILL_DATA_DIR=(/[\w/]+)", PAGE)
    assert folder
    assert (service["ProtectSystem"], service["ReadWritePaths"]) == ("strict", folder[1])
    assert f"--home-dir {folder[1]} --create-home {service['User']}" in PAGE
    assert f" {service['EnvironmentFile']} " in PAGE


def test_the_page_names_each_unit() -> None:
    for name in UNITS:
        assert name.removesuffix(".service").rstrip("@") in PAGE


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_a_unit_without_a_word(name: str, tmp_path: Path) -> None:
    assert ANALYZE
    units = Path(shutil.copytree(FOLDER, tmp_path / "etc/systemd/system"))
    for target in TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDescription=A part of every machine\n")
    program = tmp_path / PROGRAM.relative_to("/")
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    unit = name.replace("@", "@smollm2-135m")
    said = subprocess.run([ANALYZE, "verify", f"--root={tmp_path}", unit], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
