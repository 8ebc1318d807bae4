"""The page at `/`: it holds no data, and asks only what there is. How it looks is for a person to see."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.api import page
from jobs.api.app import ROUTES
from jobs.contract.batch import Batch, Fault
from jobs.states import BatchState

SCRIPT = Path(page.PAGE).read_text()


def test_the_page_needs_no_key_and_lets_nothing_in_but_itself(app: FastAPI) -> None:
    with TestClient(app) as nobody:
        first, second = nobody.get("/"), nobody.get("/")
    assert first.status_code == 200
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    [nonce] = set(re.findall(r'nonce="([^"]*)"', first.text))
    assert policy.count(f"'nonce-{nonce}'") == 2
    assert f"nonce-{nonce}" not in second.headers["content-security-policy"]
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write", first.text)


def test_the_page_asks_only_for_what_there_is() -> None:
    asked = {path.split("?")[0] for path in re.findall(r'[`"](/v1/[^`"]+)[`"]', SCRIPT)}
    routes = [re.sub(r"{[^}]+}", "[^/]+", path) for _, path, _ in ROUTES]
    assert len(asked) == 4
    for path in asked:
        assert any(re.fullmatch(route, path) for route in routes), path


@pytest.mark.parametrize(("name", "model"), [("batch", Batch), ("fault", Fault)])
def test_the_page_reads_only_fields_that_there_are(name: str, model: type[Batch | Fault]) -> None:
    read = set(re.findall(rf"\b{name}\.(\w+)", SCRIPT))
    assert len(read) > 2
    assert read <= set(model.model_fields)


def test_every_state_that_the_page_names_is_one() -> None:
    [kinds] = re.findall(r"const KIND = {(.*?)}", SCRIPT)
    [open_ones] = re.findall(r"\[([^\]]+)\]\.includes\(batch\.status\)", SCRIPT)
    named = {*re.findall(r"(\w+):", kinds), *re.findall(r'"(\w+)"', open_ones)}
    assert len(named) == 6
    assert named <= {state.value for state in BatchState}
