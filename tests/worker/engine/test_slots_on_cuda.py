"""What only a card can show of slots. `pytest -m gpu`; runs with `--noconftest` too, as `paged/test_on_a_card.py`."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests import tiny_model
from tests.worker.engine.paged.test_on_a_card import REASON, SPEC
from tests.worker.model import tiny_folder
from worker import model as models
from worker.engine import Engine, EngineSettings, Prompt, Sampling
from worker.engine import session as sessions
from worker.engine.device import gpu
from worker.engine.loading import load, open_runner
from worker.engine.runner import Span
from worker.engine.settings import Device
from worker.engine.slot_ports import DevicePorts, HostPorts
from worker.engine.slot_runner import SlotRunner
from worker.model import ModelFolder, Precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]

KNOBS = EngineSettings(
    device=Device.CUDA, context_tokens_max=1024, slots_max=16, kv_bytes_max=2**30, threads=4, chunk_tokens=512
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("card") / "slots", spec=SPEC, precision=Precision.FP16)


def opened(model: ModelFolder) -> SlotRunner:
    runner = open_runner(model, KNOBS)
    assert isinstance(runner, SlotRunner)
    assert isinstance(runner._ports, DevicePorts)
    return runner


def test_a_graph_on_slots_has_no_node_for_the_cpu_and_reads_one_number_there(model: ModelFolder) -> None:
    memory = gpu.open_memory()
    session = gpu.open_session(model.graph_path, memory, ort.SessionOptions(), captures=True)
    assert sessions.inputs_on_host(session) == {"total_sequence_length"}
    memory.close()


def test_an_engine_that_runs_ahead_writes_what_one_writes_that_waits_for_each_token(model: ModelFolder) -> None:
    """Every kind of row; the other one draws on the host, so that it runs nothing ahead."""
    random = np.random.default_rng(13)
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "frequency_penalty": 0.6, "repetition_penalty": 1.2},
        {"temperature": 0.0, "logit_bias": ((5, 2.0), (6, -3.0))},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 0.9, "top_k": 40},
        {"temperature": 0.9, "min_p": 0.05},
    ]
    asked = [
        Prompt(
            random.integers(0, 259, random.integers(1, 400)).tolist(),
            Sampling(seed=number, **ways[number % len(ways)]),
            [3, 40, 17][number % 3],
            choices=1 + number % 2,
            top_logprobs=[None, 4][number // 2 % 2],
            stop_token_ids=frozenset(range(0, 250, 17)),
        )
        for number in range(48)
    ]
    answers = []
    for ahead in (True, False):
        runner = opened(model)
        if not ahead:
            runner._ports = HostPorts(runner.slots + runner.stages, runner.vocabulary)
        with Engine(runner, KNOBS) as engine:
            futures = [engine.submit(prompt) for prompt in asked]
            answers.append([[choice.token_ids for choice in future.result(120)] for future in futures])
    same = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    assert same >= 43, f"{same} of 48 are the same: sums may differ in their last bits, not more"


def test_a_run_returns_before_what_was_begun_before_it_has_ended(model: ModelFolder) -> None:
    runner = opened(model)
    memory, size_bytes = runner._ports._memory, 2**30  # type: ignore[attr-defined]
    runner.step([Span(0, 0, np.arange(200), ends_prompt=True)], [])
    for _ in range(16):
        runner.place(0, 200)
    source, target = memory.allocate(size_bytes), memory.allocate(size_bytes)
    runner.step([], [1] * 16)
    memory.wait()
    began = perf_counter()
    for _ in range(64):
        memory.copy_planes(target, source, size_bytes // 1024, size_bytes // 1024, 1024)
    runner.step([], [1] * 16)
    returned = perf_counter() - began
    memory.wait()
    ended = perf_counter() - began
    runner.close()
    assert returned < ended / 2, f"a run returned after {returned * 1e3:.2f} of {ended * 1e3:.2f} ms"


def test_weights_that_stayed_in_their_checkpoint_answer(tmp_path: Path) -> None:
    arrays = {name: array.astype(np.float16) for name, array in tiny_folder.tensors().items()}
    source = tiny_folder.write(tmp_path / "Tiny", arrays=arrays)
    added = models.add(str(source), tmp_path / "models", precision="fp16")
    assert (added.path / "checkpoint.0").exists()
    answers = []
    for device in (Device.CUDA, Device.CPU):
        knobs = EngineSettings(device=device, context_tokens_max=64, slots_max=4, kv_bytes_max=2**28, threads=4)
        with load(added, knobs) as engine:
            prompt = Prompt(list(range(20)), Sampling(seed=1, temperature=0), 1, top_logprobs=0)
            [choice] = engine.submit(prompt).result(120)
            answers += [token.logprob for token in choice.logprobs or ()]
    assert answers[0] == pytest.approx(answers[1], abs=0.05)
