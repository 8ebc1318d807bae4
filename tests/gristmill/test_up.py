"""`gristmill up` as a person meets it: what it prints works as printed, what dies comes back, Ctrl-C ends it whole."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from gristmill.cli import main
from gristmill.client import Client
from jobs.settings import Settings
from tests import tiny_model
from tests.gristmill.embedded.conftest import copy, open_folder, remove
from tests.gristmill.test_run import assert_nothing_runs, children, start

DEADLINE_SECONDS = 60
CURL = re.compile(r"^  (curl .*\\\n.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Up:
    """One that runs, and what it has said so far: standard output and standard error are files in `home`."""

    home: Path
    process: "subprocess.Popen[str]"
    url: str
    printed: str

    def said(self) -> str:
        return (self.home / "said").read_text()

    def key(self) -> str:
        return (self.home / "data" / "api-key").read_text().strip()

    def call(self, *arguments: object) -> Result:
        """A command of ours against it, in this process."""
        words = [str(argument) for argument in arguments]
        environment: dict[str, str | None] = dict.fromkeys(Settings.environment_names())
        return CliRunner().invoke(
            main, [*words, "--url", self.url], env=environment | {"GRISTMILL_DATA_DIR": str(self.home / "data")}
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as briefly:
        return int(briefly.getsockname()[1])


def begin(home: Path) -> Up:
    """Start it and wait until it says that it is ready."""
    port = free_port()
    with (home / "printed").open("w") as printed, (home / "said").open("w") as said:
        process = start(home, "up", "--port", port, stdout=printed, stderr=said)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not CURL.search(text := (home / "printed").read_text()):
        assert process.poll() is None, (home / "said").read_text()
        assert time.monotonic() < deadline, (home / "said").read_text()
        time.sleep(0.05)
    return Up(home, process, f"http://127.0.0.1:{port}", text)


def end(up: Up) -> int:
    """Ctrl-C; the exit status."""
    up.process.send_signal(signal.SIGINT)
    return up.process.wait(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    place = open_folder()
    tiny_model.write(place / "data" / "models" / "tiny")
    (place / "data" / "models" / "lost").mkdir()
    yield place
    remove(place)


@pytest.fixture(scope="module")
def up(home: Path) -> Iterator[Up]:
    running = begin(home)
    yield running
    if running.process.poll() is None:
        end(running)


def answered(up: Up) -> str:
    """The answer of the curl line that was printed, asked until it comes."""
    line = CURL.search(up.printed)
    assert line
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        asked = subprocess.run(
            ["bash", "-c", f"{line[1]} --silent --max-time 20"], capture_output=True, text=True, check=False
        )
        if asked.stdout.startswith("{") and "choices" in (answer := json.loads(asked.stdout)):
            return str(answer["choices"][0]["finish_reason"])
        assert time.monotonic() < deadline, f"{asked.stdout}{asked.stderr}{up.said()}"


def test_what_it_prints_names_the_key_and_works_as_printed(up: Up) -> None:
    assert f"URL      {up.url}/v1\n" in up.printed
    assert f"API key  {up.key()} (shown once; " in up.printed
    assert answered(up) in ("stop", "length")


def test_a_damaged_model_is_left_out_with_one_sentence(up: Up) -> None:
    [sentence] = [line for line in up.said().splitlines() if line.startswith("lost is left out: ")]
    assert "manifest.json is missing; add it again, or: gristmill models remove lost" in sentence
    listed = httpx.get(f"{up.url}/v1/models", headers={"authorization": f"Bearer {up.key()}"}).json()["data"]
    assert [model["id"] for model in listed] == ["tiny"]


def test_workers_give_way_to_the_api_where_cores_are_few(up: Up) -> None:
    own = os.getpriority(os.PRIO_PROCESS, up.process.pid)
    for words, given in [(("api",), 0), (("worker", "--io"), 1), (("worker", "--model"), 1)]:
        (pid,) = children(up.process.pid, *words)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while os.getpriority(os.PRIO_PROCESS, pid) != own + given:
            assert time.monotonic() < deadline, words
            time.sleep(0.05)


DIES = [
    ("worker", "--model"),
    ("worker", "--io"),
    ("api", "--host"),
]


@pytest.mark.parametrize("words", DIES, ids=[" ".join(words) for words in DIES])
def test_a_process_that_is_killed_comes_back_with_one_sentence(up: Up, words: tuple[str, ...]) -> None:
    before = up.said().splitlines()
    (victim,) = children(up.process.pid, *words)
    os.kill(victim, signal.SIGKILL)
    wait_for_more(up, before)
    assert answered(up) in ("stop", "length")
    (sentence,) = up.said().splitlines()[len(before) :]
    assert re.search(r"^\S+ has ended with status -9; starting it again \(log: .*\.log\)\.$", sentence)


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_that_is_killed_comes_back_with_one_sentence(up: Up, server: str) -> None:
    before = up.said().splitlines()
    os.kill(int((up.home / "data" / "servers" / f"{server}.pid").read_text()), signal.SIGKILL)
    wait_for_more(up, before)
    assert answered(up) in ("stop", "length")
    (sentence,) = up.said().splitlines()[len(before) :]
    assert sentence.startswith(f"{server.title()} has died")
    assert sentence.endswith("starting it again.")


def wait_for_more(up: Up, before: list[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while up.said().splitlines() == before:
        assert time.monotonic() < deadline, "nothing was said of the death"
        time.sleep(0.05)


def test_a_second_one_on_the_same_port_is_refused(up: Up) -> None:
    port = up.url.rpartition(":")[2]
    refused = CliRunner().invoke(main, ["up", "--port", port], env={"GRISTMILL_DATA_DIR": str(up.home / "data")})
    assert refused.exit_code == 2
    assert refused.stderr.endswith(
        f"Error: The API cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port.\n"
    )


def line(custom_id: str = "a", method: str = "POST", url: str = "/v1/chat/completions", **body: object) -> bytes:
    """One request as a line without its end."""
    asked = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi."}]} | body
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": asked}).encode()


GOOD = line("good")
HALF_A_PAIR = line(messages=[{"role": "user", "content": "\ud800"}])
NESTED = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
BAD = {
    "one bad line among good ones": (GOOD + b"\n{\n" + line("b") + b"\n", 2, "invalid_json_line"),
    "duplicate custom_id": (GOOD + b"\n" + GOOD + b"\n", 2, "duplicate_custom_id"),
    "no model": (GOOD + b"\n" + line(model=None) + b"\n", 2, None),
    "unknown model": (line(model="gpt-4") + b"\n", 1, "model_not_found"),
    "mixed models": (GOOD + b"\n" + line(model="other") + b"\n", 2, None),
    "wrong url": (line(url="/v1/embeddings") + b"\n", 1, None),
    "wrong method": (line(method="GET") + b"\n", 1, None),
    "stream": (line(stream=True) + b"\n", 1, None),
    "a line of 10 MB": (GOOD + b"\n" + line(pad="x" * 10_000_000) + b"\n", 2, None),
    "nested 10,000 deep": (GOOD + b"\n" + NESTED + b"\n", 2, None),
    "a NUL byte": (GOOD + b"\n\0\n", 2, "invalid_json_line"),
    "half a surrogate pair": (GOOD + b"\n" + HALF_A_PAIR + b"\n", 2, None),
}


@pytest.mark.parametrize(("content", "line_no", "code"), BAD.values(), ids=BAD)
def test_a_bad_line_fails_its_batch_with_its_number_and_a_reason(
    up: Up, tmp_path: Path, content: bytes, line_no: int, code: str | None
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    submitted = up.call("submit", tmp_path / "in.jsonl")
    assert submitted.exit_code == 0, submitted.output
    told = ended(up, submitted.stdout.strip())
    assert re.search(rf"^line {line_no}: .+ \({code or chr(92) + 'w+'}\)$", told, re.MULTILINE), told
    assert "Traceback" not in told


NO_JSONL = {
    "not JSONL": b"<html>\n",
    "a NUL byte": b"\0\n",
    "nested 10,000 deep": line(messages="@").replace(b'"@"', NESTED) + b"\n",
    "an empty file": b"",
}


@pytest.mark.parametrize("content", NO_JSONL.values(), ids=NO_JSONL)
def test_a_file_that_does_not_begin_as_jsonl_is_refused_in_one_sentence(up: Up, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    refused = up.call("submit", tmp_path / "in.jsonl")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert re.fullmatch(r"Error: .*(Invalid file format|is empty).*\n", refused.stderr)


TAKEN = {
    "a BOM": b"\xef\xbb\xbf" + GOOD + b"\n",
    "CRLF": GOOD + b"\r\n" + line("b") + b"\r\n",
    "no final newline": GOOD,
    "a NUL in a text": line(messages=[{"role": "user", "content": "a\0b"}]) + b"\n",
    "n of a million": line(n=1_000_000) + b"\n",
}


@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
def test_odd_bytes_are_taken_and_each_line_gets_an_answer_or_an_error(up: Up, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    batch_id = up.call("submit", tmp_path / "in.jsonl").stdout.strip()
    told = ended(up, batch_id)
    count = content.count(b"custom_id")
    assert f"lines    {count}/{count}\n" in told, told


def ended(up: Up, batch_id: str) -> str:
    """What `status` tells of a batch when it is over."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with Client(up.url, up.key()) as client:
        while client.retrieve(batch_id).status not in ("failed", "completed"):
            assert time.monotonic() < deadline, up.said()
            time.sleep(0.05)
    return up.call("status", batch_id).stdout


@pytest.mark.parametrize("command", ["status", "cancel"])
@pytest.mark.parametrize("batch_id", ["batch_0", "file-0", "../../x", "\0", "é"])
def test_an_unknown_id_is_one_sentence(up: Up, command: str, batch_id: str) -> None:
    refused = up.call(command, batch_id)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1


def test_killed_and_started_again_it_goes_on_and_ctrl_c_ends_it_whole(seed: Path) -> None:
    place = open_folder()
    try:
        tiny_model.write(copy(seed, place) / "models" / "tiny")
        first = begin(place)
        key = first.key()
        first.process.kill()
        first.process.wait(DEADLINE_SECONDS)
        second = begin(place)
        assert f"API key  kept in {place}/data/api-key\n" in second.printed
        assert key not in second.printed
        pids = children(second.process.pid)
        assert len(pids) == 3
        assert end(second) == 0
        assert second.said().removeprefix("Stopping the workers; Ctrl-C does not wait for them.\n") == "Stopped.\n", (
            "it may take a while"
        )
        assert_nothing_runs(pids)
        logs = "".join(log.read_text() for log in (place / "data" / "logs").glob("*.log"))
        assert "Traceback" not in logs
        assert "superuser" not in logs
        assert "PendingDeprecation" not in logs
    finally:
        remove(place)
