"""What a person meets at the command line: one-sentence errors, exit statuses, files that appear whole."""

import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gristmill import delivery, screen
from gristmill.cli import main
from gristmill.client import Client
from gristmill.commands.run import competition
from gristmill.faults import Fault
from gristmill.input_file import prepare, with_model
from gristmill.operate import Operation, own_key
from jobs.contract.batch import Batch
from jobs.settings import Settings
from tests import tiny_model

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "tiny",
    "errors": None,
    "input_file_id": "file-in",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-out",
    "error_file_id": None,
    "created_at": 1_700_000_000,
    "in_progress_at": None,
    "expires_at": 1_700_086_400,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 2, "completed": 2, "failed": 0},
    "usage": {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    },
    "metadata": None,
}
LINE = (
    b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "tiny", "messages": []}}\n'
)


class StubApi:
    """A server of scripted answers; it keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, bytes, str | None]] = []
        stub = self

        class Answering(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                stub.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
                status, content = stub.answers.get((self.command, path), (404, b"nothing here"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def says(self, method: str, path: str, value: object, status: int = 200) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.answers[(method, path)] = (status, content)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[StubApi]:
    stub = StubApi()
    yield stub
    stub.close()


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.environment_names():
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "data"
    monkeypatch.setenv("GRISTMILL_DATA_DIR", str(folder))
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What a command says as it ends with status 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def of(**changes: object) -> dict[str, Any]:
    return BATCH | changes


@pytest.mark.parametrize("command", ["", *main.commands])
def test_every_command_explains_itself(command: str) -> None:
    result = call(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert "parent-pid" not in result.stdout


def test_an_unknown_setting_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_SLOT", "3")
    said = refused("models", "list")
    assert said == "Error: GRISTMILL_SLOT is not a setting; did you mean GRISTMILL_SLOTS?\n"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GRISTMILL_DATABASE_URL", "x", "did you mean DATABASE_URL?"),
        ("GRISTMILL_SPEED", "9", "list them with: gristmill settings"),
        ("GRISTMILL_LOG_LEVEL", "loud", "='loud' cannot be used"),
        ("GRISTMILL_SLOTS", "many", "='many' cannot be used"),
        ("DATABASE_URL", "mysql://u:p@h/x", "DATABASE_URL cannot be used: it does not begin with postgresql:// or "),
        ("BROKER_URL", "amqp://u:p@h", "BROKER_URL cannot be used: it does not begin with redis:// or "),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_a_way_out(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    for command in (("models", "list"), ("worker", "--io"), ("up",)):
        told = refused(*command)
        assert told.startswith(f"Error: {name}")
        assert said in told
        assert told.count("\n") == 1


def test_settings_are_listed_with_what_they_are_here_and_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_SLOTS", "3")
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:secret@h/x")
    monkeypatch.setenv("GRISTMILL_LOG_LEVEL", "debug")
    told = call("settings")
    assert told.exit_code == 0
    listed = told.stdout.splitlines()
    assert {line.partition("=")[0] for line in listed[::2]} == Settings.environment_names()
    assert {"GRISTMILL_SLOTS=3", "DATABASE_URL=...", "BROKER_URL=  (default)", "GRISTMILL_THREADS=2  (default)"} <= {
        *listed
    }
    assert "secret" not in told.output
    monkeypatch.setenv("GRISTMILL_SLOT", "3")
    mistaken = call("settings")
    assert (mistaken.exit_code, mistaken.stdout) == (2, told.stdout)
    assert "did you mean GRISTMILL_SLOTS?" in mistaken.stderr


def test_an_unknown_model_is_refused_in_one_sentence() -> None:
    said = refused("models", "show", "nothing")
    assert "gristmill models add nothing" in said
    assert said.count("\n") == 1


def test_a_damaged_model_is_marked_in_the_list_which_then_fails(data_dir: Path) -> None:
    whole = tiny_model.write(data_dir / "models" / "whole")
    assert call("models", "list").exit_code == 0
    (tiny_model.write(data_dir / "models" / "org--cut").path / "model.onnx.data").write_bytes(b"")
    (data_dir / "models" / "empty").mkdir()
    listed = call("models", "list")
    assert listed.exit_code == 1
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert rows[0] == ["NAME", "PRECISION", "SIZE"]
    assert ["empty", "damaged", "-"] in rows
    assert [whole.name, "fp32", *rows[-1][2:]] in rows
    assert "manifest.json is missing; add it again, or: gristmill models remove empty" in listed.stderr
    assert "model.onnx.data has 0 bytes instead of" in listed.stderr


def test_without_a_model_up_and_run_say_how_to_add_one_and_where_they_looked(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINE)
    for command in (("up",), ("run", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")):
        said = refused(*command)
        assert f"No model is installed in {data_dir}/models (" in said
        assert "gristmill models add smollm2-135m" in said
        assert "GRISTMILL_DATA_DIR" in said


def test_a_bad_input_is_refused_before_anything_starts(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    out = tmp_path / "out.jsonl"
    assert "There is no file" in refused("run", tmp_path / "none.jsonl", "-o", out)
    assert "is empty" in refused("run", tmp_path / "empty.jsonl", "-o", out)
    assert "is not a file" in refused("run", tmp_path, "-o", out)
    (tmp_path / "in.jsonl").write_bytes(LINE)
    assert "is the input" in refused("run", tmp_path / "in.jsonl", "-o", tmp_path / "in.jsonl")
    assert "is a folder" in refused("run", tmp_path / "in.jsonl", "-o", tmp_path)
    assert not (data_dir / "servers").exists()


def test_a_file_for_failed_lines_that_cannot_be_one_is_refused_before_anything_starts(
    tmp_path: Path, data_dir: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(LINE)
    for errors, said in (
        (out, "is for the answers"),
        (tmp_path / "new" / ".." / "out.jsonl", "is for the answers"),
        (source, "is the input"),
        (tmp_path, "is a folder"),
        (source / "errors.jsonl", "cannot be written"),
    ):
        assert said in refused("run", source, "-o", out, "--errors", errors)
    assert not (data_dir / "servers").exists()


def test_a_target_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "out.jsonl", Path("/proc/out.jsonl")):
        with pytest.raises(Fault, match=f"^{output} cannot be written: "):
            delivery.refuse_bad_targets(output, None)


def test_targets_that_can_be_written_get_their_folders_and_nothing_else(tmp_path: Path) -> None:
    delivery.refuse_bad_targets(tmp_path / "a" / "out.jsonl", tmp_path / "b" / "c" / "errors.jsonl")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]
    delivery.refuse_bad_targets(Path("/dev/null"), None)


def test_a_port_in_use_is_told_before_anything_starts(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gristmill.operate.installed", lambda *_: ["tiny"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused("up", "--port", taken.getsockname()[1])
    assert "choose another with --port" in said
    assert not (data_dir / "servers").exists()


def test_single_parts_need_to_be_told_their_servers() -> None:
    assert "needs DATABASE_URL" in refused("api")
    assert "needs DATABASE_URL" in refused("worker", "--io")
    assert "--model NAME and --io" in refused("worker")
    assert "--model NAME and --io" in refused("worker", "--io", "--model", "tiny")


def test_a_database_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:secret@127.0.0.1:1/x")
    monkeypatch.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    said = refused("migrate")
    assert said.startswith("Error: The database cannot be used: ")
    assert "secret" not in said


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as briefly:
        url = f"http://127.0.0.1:{briefly.getsockname()[1]}"
    for command in (("status",), ("cancel", "batch_1"), ("results", "batch_1", "-o", "out.jsonl")):
        said = refused(*command, "--url", url, "--key", "k")
        assert said.startswith(f"Error: Nobody answers at {url}")
        assert said.count("\n") == 1


def test_what_is_not_gristmill_is_told_so(api: StubApi) -> None:
    api.says("GET", "/v1/batches/batch_1", b"<html>")
    assert "is not JSON" in refused("status", "batch_1", "--url", api.url, "--key", "k")
    for url in ("http://h:port", "127.0.0.1:8000", "localhost:8000", "ftp://h", ""):
        assert "is not the address" in refused("status", "batch_1", "--url", url, "--key", "k")


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_may_be_the_one_that_up_prints(api: StubApi, ending: str) -> None:
    api.says("GET", "/v1/batches", {"data": [], "has_more": False})
    assert call("status", "--url", api.url + ending, "--key", "k").exit_code == 0


@pytest.mark.parametrize(("name", "sent"), [("a.jsonl", "a.jsonl"), ("a.txt", "a.txt.jsonl"), ("a", "a.jsonl")])
def test_a_file_may_have_any_name_here(api: StubApi, tmp_path: Path, name: str, sent: str) -> None:
    api.says("POST", "/v1/files", {"id": "file-in"})
    api.says("POST", "/v1/batches", of(status="validating"))
    (tmp_path / name).write_bytes(LINE)
    assert call("submit", tmp_path / name, "--url", api.url, "--key", "k").exit_code == 0
    assert f'filename="{sent}"'.encode() in api.asked[0][2]


def test_without_a_key_the_person_is_told_where_one_comes_from() -> None:
    assert "gristmill up" in refused("status")


def test_the_key_that_up_keeps_is_used(api: StubApi, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "api-key").write_text("gm_kept\n")
    api.says("GET", "/v1/batches", {"data": [], "has_more": False})
    result = call("status", "--url", api.url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert api.asked[0][3] == "Bearer gm_kept"


def test_the_key_of_another_user_is_refused_with_a_way_out(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played, since root may read any file."""

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gristmill.operate.installed", lambda *_: ["tiny"])
    monkeypatch.setattr("gristmill.operate.refuse_taken_port", lambda *_: None)
    monkeypatch.setattr(Path, "read_text", refuse)
    for command in (("status",), ("up",)):
        said = refused(*command)
        assert said == (
            f"Error: {data_dir}/api-key is another user's: start as that user, or choose another data folder with "
            "GRISTMILL_DATA_DIR.\n"
        )


def test_a_refusal_is_said_in_the_servers_words(api: StubApi) -> None:
    api.says("GET", "/v1/batches/batch_1", {"error": {"message": "No batch found."}}, status=404)
    assert refused("status", "batch_1", "--url", api.url, "--key", "k") == "Error: No batch found.\n"


def test_submit_prints_the_id_alone(api: StubApi, tmp_path: Path) -> None:
    api.says("POST", "/v1/files", {"id": "file-in"})
    api.says("POST", "/v1/batches", of(status="validating"))
    (tmp_path / "in.jsonl").write_bytes(LINE)
    result = call("submit", tmp_path / "in.jsonl", "--url", api.url, "--key", "k")
    assert (result.exit_code, result.stdout) == (0, "batch_1\n")
    assert LINE in api.asked[0][2]
    assert json.loads(api.asked[1][2])["input_file_id"] == "file-in"


def test_status_lists_batches_in_columns(api: StubApi) -> None:
    api.says("GET", "/v1/batches", {"data": [of()], "has_more": False})
    heading, row = call("status", "--url", api.url, "--key", "k").stdout.splitlines()
    assert heading.split() == ["BATCH", "STATUS", "LINES", "MODEL", "CREATED"]
    assert row.split()[:4] == ["batch_1", "completed", "2/2", "tiny"]


def test_status_says_where_it_stops(api: StubApi) -> None:
    api.says("GET", "/v1/batches", {"data": [of(id=f"batch_{n}") for n in range(51)], "has_more": False})
    listed = call("status", "--url", api.url, "--key", "k")
    assert len(listed.stdout.splitlines()) == 51
    assert listed.stderr == "Older than these 50 are not shown.\n"


def test_results_come_whole_with_status_0(api: StubApi, tmp_path: Path) -> None:
    api.says("GET", "/v1/batches/batch_1", of())
    api.says("GET", "/v1/files/file-out/content", b"answers\n")
    out = tmp_path / "new" / "out.jsonl"
    result = call("results", "batch_1", "-o", out, "--url", api.url, "--key", "k")
    assert (result.exit_code, result.stdout) == (0, "")
    assert out.read_bytes() == b"answers\n"
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_failed_lines_go_beside_the_answers_with_status_1(api: StubApi, tmp_path: Path) -> None:
    counts = {"total": 2, "completed": 0, "failed": 2}
    api.says("GET", "/v1/batches/batch_1", of(output_file_id=None, error_file_id="file-err", request_counts=counts))
    api.says("GET", "/v1/files/file-err/content", b"failures\n")
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"of an earlier batch")
    result = call("results", "batch_1", "-o", out, "--url", api.url, "--key", "k")
    assert result.exit_code == 1
    assert out.read_bytes() == b""
    assert (tmp_path / "out.errors.jsonl").read_bytes() == b"failures\n"


def test_failures_of_an_earlier_batch_do_not_stay_beside_new_answers(api: StubApi, tmp_path: Path) -> None:
    api.says("GET", "/v1/batches/batch_1", of())
    api.says("GET", "/v1/files/file-out/content", b"answers\n")
    (tmp_path / "out.errors.jsonl").write_bytes(b"failures\n")
    assert call("results", "batch_1", "-o", tmp_path / "out.jsonl", "--url", api.url, "--key", "k").exit_code == 0
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_download_that_fails_leaves_the_former_file(api: StubApi, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"former")
    with Client(api.url, "k") as client, pytest.raises(Exception, match="404"):
        client.download("file-gone", out)
    assert [path.read_bytes() for path in tmp_path.glob("*out*")] == [b"former"]


def test_a_batch_that_runs_has_no_results_yet(api: StubApi, tmp_path: Path) -> None:
    counts = {"total": 2, "completed": 1, "failed": 0}
    api.says("GET", "/v1/batches/batch_1", of(status="in_progress", request_counts=counts))
    said = refused("results", "batch_1", "-o", tmp_path / "out.jsonl", "--url", api.url, "--key", "k")
    assert said == "Error: The batch is not finished: in progress, 1/2 lines.\n"


def test_each_fault_of_a_file_is_told_with_its_line_and_the_rest_counted(api: StubApi, tmp_path: Path) -> None:
    faults = [{"code": "bad", "message": f"Fault {line}.", "param": None, "line": line} for line in range(1, 24)]
    api.says("GET", "/v1/batches/batch_1", of(status="failed", errors={"object": "list", "data": faults}))
    said = refused("results", "batch_1", "-o", tmp_path / "out.jsonl", "--url", api.url, "--key", "k").splitlines()
    assert said[0] == "line 1: Fault 1. (bad)"
    assert said[-2:] == ["and 3 more", "No line was run; mend the file and send it again."]
    assert len(said) == 22


def test_lists_are_read_to_their_last_page(api: StubApi) -> None:
    pages = [[of(id="batch_1"), of(id="batch_2")], [of(id="batch_3")]]
    with Client(api.url, "k") as client:
        api.says("GET", "/v1/batches", {"data": pages[0], "has_more": True})
        found = client.batches()
        ids = [next(found).id, next(found).id]
        api.says("GET", "/v1/batches", {"data": pages[1], "has_more": False})
        ids += [batch.id for batch in found]
    assert ids == ["batch_1", "batch_2", "batch_3"]
    assert "after=batch_2" in api.asked[-1][1]


def test_lines_that_can_be_read_are_made_to_ask_another_model() -> None:
    request = json.loads(with_model(LINE, "other"))
    assert request == json.loads(LINE) | {"body": {"model": "other", "messages": []}}


@pytest.mark.parametrize("line", [b"{not json\n", b"\n", b"[1]\n", b'{"body": 3}\n', b"\xff\n", b"[" * 100_000])
def test_lines_that_cannot_be_read_pass_unchanged(line: bytes) -> None:
    assert with_model(line, "other") == line


def test_the_digest_names_what_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"bad\n" + LINE)
    with prepare(path, model=None, scratch=tmp_path) as plain, prepare(path, model="tiny", scratch=tmp_path) as same:
        assert (plain.model, same.model) == ("tiny", "tiny")
        assert plain.content.read() == path.read_bytes()
        assert same.content.read().startswith(b"bad\n")
    with prepare(path, model="other", scratch=tmp_path) as other:
        assert other.model == "other"
        assert len({plain.digest, other.digest}) == 2


def test_pace_counts_from_when_the_batch_was_first_seen() -> None:
    pace = screen.Pace(begun=10, lines=5, tokens=100)
    assert pace.tokens_per_second(20, 600) == 50
    assert pace.seconds_left(20, 10, 20) == 20
    assert pace.seconds_left(20, 5, 20) is None
    assert pace.tokens_per_second(10, 100) == 0


@pytest.mark.parametrize("width", [40, 71, 80, 200])
def test_a_live_line_shows_how_many_lines_are_done_in_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen_file = io.StringIO()
    console = Console(file=screen_file, width=width, force_terminal=True)
    monkeypatch.setattr("gristmill.screen.Console", lambda **_: console)
    with screen.display() as shown:
        for completed in (0, 198):  # from the second on with tokens/s and the time left
            counts = {"total": 3000, "completed": completed, "failed": 0}
            usage = BATCH["usage"] | {"output_tokens": 1000 * completed}
            shown.show(Batch.model_validate(of(status="in_progress", request_counts=counts, usage=usage)))
    assert re.search(r"\b198/3000 +lines", re.sub(r"\x1b\[[\d;?]*\w", "", screen_file.getvalue()))


def test_where_no_terminal_is_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.display() as shown:
        nothing = {"total": 0, "completed": 0, "failed": 0}
        shown.show(Batch.model_validate(of(status="validating", request_counts=nothing)))
        for completed in (2, 3):
            counts = {"total": 9, "completed": completed, "failed": 1}
            shown.show(Batch.model_validate(of(status="in_progress", request_counts=counts)))
    assert capsys.readouterr().err == "validating\nin progress: 3/9 lines, 1 failed\n"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(48.2, "48 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")]
)
def test_durations_are_readable(seconds: float, shown: str) -> None:
    assert screen.duration(seconds) == shown


def test_a_failed_files_name_follows_that_of_the_answers() -> None:
    assert delivery.errors_beside(Path("a/out.jsonl")) == Path("a/out.errors.jsonl")
    assert delivery.errors_beside(Path("out.txt")) == Path("out.txt.errors.jsonl")


def test_a_key_that_is_no_longer_let_in_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(["gm_1_a", "gm_2_b"])
    valid = {"gm_1_a"}
    monkeypatch.setattr("gristmill.operate.database.run", lambda _, work: work(None))
    monkeypatch.setattr("gristmill.operate.keys.create", lambda *_, **__: next(made))
    monkeypatch.setattr("gristmill.operate.keys.is_valid", lambda _, key: key in valid)
    path = tmp_path / "api-key"
    engine: Any = None
    assert [own_key(engine, path), own_key(engine, path)] == ["gm_1_a", "gm_1_a"]
    assert path.stat().st_mode & 0o777 == 0o600
    valid.clear()
    assert own_key(engine, path) == "gm_2_b"


def test_a_program_that_keeps_dying_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url="postgresql:///x", broker_url="redis:///0")
    said: list[str] = []
    running = Operation(settings, key="k", servers=None, say=said.append, is_verbose=True)
    running.start("worker", "worker", "--nonsense")
    program = running._programs[0]
    try:
        while program.deaths < 5:
            program._pace.not_before = min(program._pace.not_before, time.monotonic())
            running.rest(0.1)
            running.check()
        with pytest.raises(Fault, match=r"worker cannot be started: No such option.*worker\.log"):
            running.refuse_hopeless()
    finally:
        running.stop()
    assert any("ended with status 2: No such option" in sentence for sentence in said)
    assert any(sentence.startswith("worker | ") for sentence in said)


def test_a_child_ends_with_its_parent() -> None:
    child = (
        "import threading; from gristmill.commands.serving import _end_with; "
        "_end_with(1 << 30); threading.Event().wait(60)"
    )
    assert subprocess.run([sys.executable, "-c", child], timeout=30, check=False).returncode == -15


def test_a_run_tells_of_those_that_it_shares_its_workers_with() -> None:
    counts = {"total": 400, "completed": 3, "failed": 1}
    latest = [
        Batch.model_validate(of(id="batch_mine", status="in_progress")),
        Batch.model_validate(of(id="batch_stopped", status="in_progress", request_counts=counts)),
        Batch.model_validate(of(id="batch_done")),
    ]
    assert competition(latest[::2], "batch_mine") is None
    said = competition(latest, "batch_mine")
    assert said is not None
    assert said.startswith("The workers also answer batch_stopped of before, 396 lines; ")
    assert "answer 2 batches of before, 396 lines; " in (competition(latest, "batch_new") or "")


def test_batches_are_parsed_by_the_contract() -> None:
    assert delivery.is_over(Batch.model_validate(BATCH))
    assert not delivery.is_over(Batch.model_validate(of(status="finalizing")))
