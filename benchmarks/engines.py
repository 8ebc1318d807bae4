"""The engines that are compared: how each is installed, how it gets its weights, and how one is run once."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from benchmarks.workloads import Workload
from worker import model

ROOT: Final = Path(__file__).parent.parent
RUNNERS: Final = Path(__file__).parent / "peers"
PEERS: Final = ROOT / ".venv" / "peers"
MODELS: Final = PEERS / "models"
MODEL: Final = "smollm2-135m"

RUN_SECONDS_MAX: Final = 1800.0

Say = Callable[[str], None]


class NotAvailable(Exception):
    """An engine that cannot take part, with the reason in one line."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A folder that an engine's environment makes of another one, once; `{source}` and `{target}` are put in."""

    source: str
    target: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine of others, in an environment of its own under `.venv/peers`.

    `requirements` and `runner` are files in `benchmarks/peers`; `weights` is what the runner opens in `MODELS`.
    """

    name: str
    title: str
    weights: str
    conversions: tuple[Conversion, ...] = ()

    @property
    def requirements(self) -> Path:
        return RUNNERS / f"{self.name}.txt"

    @property
    def runner(self) -> Path:
        return RUNNERS / f"run_{self.name.replace('-', '_')}.py"

    @property
    def environment(self) -> Path:
        return PEERS / self.name


@dataclass(frozen=True, slots=True)
class Ready:
    """An engine that can be run: the Python of its environment, its runner and the model that it opens."""

    name: str
    title: str
    python: Path
    runner: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """One engine, one workload, once."""

    first_token_seconds: float
    run_seconds: float
    peak_rss_bytes: int
    outputs: list[list[int]]
    notes: dict[str, float]


GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_UNPACKED: Final = Conversion(
    GGUF, "huggingface", ("{python}", str(RUNNERS / "export_huggingface.py"), "{source}", "{target}")
)
PEER_LIST: Final = (
    Peer(
        name="openvino",
        title="OpenVINO GenAI, int8",
        weights="openvino-int8",
        conversions=(
            _UNPACKED,
            Conversion(
                "huggingface",
                "openvino-int8",
                (
                    *("{bin}/optimum-cli", "export", "openvino", "--model", "{source}", "--weight-format", "int8"),
                    *("--task", "text-generation-with-past", "{target}"),
                ),
            ),
        ),
    ),
    Peer(
        name="onnxruntime-genai",
        title="onnxruntime-genai, int4",
        weights="onnxruntime-genai-int4",
        conversions=(
            _UNPACKED,
            Conversion(
                "huggingface",
                "onnxruntime-genai-int4",
                (
                    *("{python}", "-m", "onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{target}"),
                    *("-p", "int4", "-e", "cpu", "-c", "{target}", "--extra_options", "int4_accuracy_level=4"),
                ),
            ),
        ),
    ),
    Peer(name="llama-cpp", title="llama.cpp server, Q4_1", weights=GGUF),
)


def ours(precision: str, models_dir: Path, say: Say) -> Ready:
    """Gristmill, with the peers' GGUF file converted anew: our graph may have changed. Raises NotAvailable."""
    _fetch_weights(say)
    try:
        folder = model.add(str(MODELS / GGUF), models_dir, name=MODEL, precision=precision)
    except model.ModelError as error:
        raise NotAvailable(str(error)) from error
    return Ready("ours", f"Gristmill, {precision}", Path(sys.executable), RUNNERS / "run_gristmill.py", folder.path)


def prepare(peer: Peer, say: Say) -> Ready:
    """Install a peer and convert its weights, unless that was done before. Raises NotAvailable."""
    _install(peer, say)
    _fetch_weights(say)
    for conversion in peer.conversions:
        _convert(peer, conversion, say)
    return Ready(peer.name, peer.title, _python(peer), peer.runner, MODELS / peer.weights)


def run(engine: Ready, workload: Workload, threads: int) -> Outcome:
    """Answer a workload in a fresh process and check that every answer has its length. Raises NotAvailable."""
    with tempfile.TemporaryDirectory() as scratch:
        task, report, log = Path(scratch, "task.json"), Path(scratch, "report.json"), Path(scratch, "log")
        task.write_text(workload.as_json())
        started = monotonic()
        command = [engine.python, engine.runner, "--model", engine.model, "--workload", task, "--report", report]
        peak_rss_bytes = _run(
            [*map(str, command), "--threads", str(threads), "--started", str(started)], log, engine.title
        )
        answered = json.loads(report.read_text())
    lengths = [len(ids) for ids in answered["outputs"]]
    if lengths != workload.output_tokens:
        raise NotAvailable(f"answered {sum(lengths)} tokens where {workload.tokens_out} were asked for")
    return Outcome(peak_rss_bytes=peak_rss_bytes, **answered)


def _run(command: Sequence[str], log: Path, title: str) -> int:
    """Run to the end, for at most RUN_SECONDS_MAX; gives the most memory held, in bytes."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["timeout", str(RUN_SECONDS_MAX), *command], stdout=file, stderr=subprocess.STDOUT, env=_offline()
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotAvailable(f"{title} ended with {process.returncode}: {_last_line(log)}")
    return usage.ru_maxrss * 1024


def _install(peer: Peer, say: Say) -> None:
    """The stamp is written last, so an interrupted install is done again; a changed list is installed anew."""
    wanted = peer.requirements.read_text()
    stamp = peer.environment / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"Installing {peer.title} (once)")
    venv.create(peer.environment, with_pip=True, clear=True)
    pip = [_python(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _do([*map(str, pip), "--only-binary", ":all:", "--requirement", str(peer.requirements)], "installing")
    stamp.write_text(wanted)


def _fetch_weights(say: Say) -> None:
    """The GGUF file of our own model, from where our own store fetches it."""
    if (MODELS / GGUF).exists():
        return
    MODELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODELS) as scratch:
        try:
            model.SOURCES[MODEL].fetch(Path(scratch), say).rename(MODELS / GGUF)
        except model.ModelError as error:
            raise NotAvailable(str(error)) from error


def _convert(peer: Peer, conversion: Conversion, say: Say) -> None:
    """Convert beside the target, then put it there in one move."""
    target = MODELS / conversion.target
    if target.exists():
        return
    say(f"Writing {conversion.target} for {peer.title} (once)")
    with tempfile.TemporaryDirectory(dir=MODELS) as scratch:
        built = Path(scratch, "built")
        places = {"python": _python(peer), "bin": _python(peer).parent, "target": built}
        places["source"] = MODELS / conversion.source
        _do([part.format_map(places) for part in conversion.command], "converting")
        built.rename(target)


def _do(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_offline(), check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing was said"]
        raise NotAvailable(f"{what} failed: {lines[-1][:200]}")


def _offline() -> dict[str, str]:
    """No converter looks for a model elsewhere."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _python(peer: Peer) -> Path:
    return peer.environment / "bin" / "python"


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing was said"
