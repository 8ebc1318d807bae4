"""What the GPU's benchmark decides on the host: that one part's failure is told and hides no other."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import end_to_end, parts, roofline, shapes, steps
from benchmarks.gpu.end_to_end import Watch
from benchmarks.gpu.exactness import compare
from benchmarks.gpu.given import Given
from benchmarks.gpu.roofline import Rates, Work
from benchmarks.gpu.sets import SETS
from benchmarks.gpu.tables import tables

GIVEN = Given("cpu", "tiny", is_tiny=True, seconds=60)


def test_a_trial_on_the_cpu_fills_every_part_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out)]
    first = subprocess.run([*command, "--only", "engine"], capture_output=True, text=True, timeout=120, check=True)
    assert "engine tiny: at most" in first.stdout
    done = json.loads(out.read_text())
    found = done["engine tiny"]["found"]
    shared, plain = found["shared 32, own 5, 4 out"], found["the same, nothing shared"]
    assert shared["prompt_tokens_computed"] < 0.8 * shared["prompt_tokens"]
    assert plain["prompt_tokens_computed"] > 0.95 * plain["prompt_tokens"]
    second = subprocess.run(
        [*command, "--only", "decode,engine"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "engine tiny: done before" in second.stdout
    results = json.loads(out.read_text())
    assert results["engine tiny"] == done["engine tiny"]
    assert len(results["decode tiny"]["found"]["steps"]) == 6
    assert "| the same, nothing shared |" in second.stdout


def test_without_a_card_the_reason_is_the_result(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "device", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 0:
        pytest.skip("there is a card")
    assert "GpuUnusable: the GPU cannot be used" in done.stdout
    assert "failure" in json.loads(out.read_text())["device"]


@pytest.mark.parametrize(("part", "words"), [("crash", "status -9|status 9"), ("hang", "not done within 3 s")])
def test_a_part_whose_process_dies_or_hangs_is_told(part: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_run", {"crash": _crash, "hang": _hang}[part])
    result = parts.in_process(part, GIVEN, 3 if part == "hang" else 60)
    assert any(word in result["failure"] for word in words.split("|"))


def test_what_a_part_had_found_is_kept_whatever_becomes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_run", _half_then_crash)
    result = parts.in_process("decode", GIVEN, 60)
    assert result["found"] == {"steps": [1]}
    assert "ended with the status" in result["failure"]


def _half_then_crash(part: str, given: Given, results: Any) -> None:
    results.send((False, {"found": {"steps": [1]}}))
    _crash()


def _crash(*_: Any) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def _hang(*_: Any) -> None:
    import threading

    threading.Event().wait(60)


def test_how_long_the_host_waits_for_the_card_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(end_to_end, "perf_counter", lambda: next(clock))
    memory, watch = SimpleNamespace(mark=lambda: lambda: None, wait=lambda: None), Watch()
    watch.over(memory)  # type: ignore[arg-type]
    marked = memory.mark()
    assert watch.seconds == 0
    marked()
    memory.wait()
    assert watch.seconds == 2


def test_the_fit_finds_what_steps_are_made_of() -> None:
    made = [
        {"tokens": rows, "positions": rows * context, "seconds": 1e-3 + 2e-5 * rows + 3e-9 * rows * context}
        for rows in (1, 8, 64, 256)
        for context in (500, 4000)
    ]
    found = steps.fit(made)
    assert found["fixed"] == pytest.approx(1e-3)
    assert found["row"] == pytest.approx(2e-5)
    assert found["position"] == pytest.approx(3e-9)
    assert found["error_max"] < 1e-9


def test_the_roofline_of_8b_is_that_of_the_arithmetic_by_hand() -> None:
    spec, rates = shapes.SHAPES["8b"], Rates(operations=790e12, bytes=4.3e12)
    assert roofline.body_weights(spec) == pytest.approx(6.98e9, rel=1e-3)
    sizes = {"weight_bytes": 2, "cache_bytes": 2}
    one = roofline.seconds(spec, roofline.decode(1, 0), rates, **sizes)
    assert one == pytest.approx((6.98e9 + 4096 * 128256) * 2 / 4.3e12, rel=1e-3)
    many = roofline.seconds(spec, roofline.decode(512, 1500), rates, **sizes)
    assert many == pytest.approx(2 * 7.505e9 * 512 / 790e12 + 131072 * 512 * 1500 / 4.3e12, rel=1e-3)
    whole = roofline.prefill(2, 100)
    assert whole == Work(tokens=200, logits=2, positions=200, pairs=2 * 5050)


def test_shapes_are_drawn_alike_and_of_the_size_they_say() -> None:
    spec = shapes.SHAPES["tiny"]
    first, again = (shapes.weights(spec).layer(1) for _ in range(2))
    gate = first.gate.read()
    assert gate.shape == (spec.intermediate, spec.hidden)
    assert (gate == again.gate.read()).all()
    assert (gate != first.up.read()).any()
    assert np.abs(gate.astype(np.float32)).std() == pytest.approx(0.6 / np.sqrt(spec.hidden), rel=0.2)


def test_sets_share_what_they_say() -> None:
    for prompts in SETS.values():
        ids = prompts.prompts(1000)
        assert len(ids) == prompts.requests
        assert {len(one) for one in ids} == {prompts.shared + prompts.own}
        assert len({tuple(one[: prompts.shared]) for one in ids}) == 1
        assert len({tuple(one) for one in ids}) == prompts.requests


def test_logits_that_differ_are_told_by_how_much() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    assert compare(rows, rows + 2)["divergence_max"] == pytest.approx(0, abs=1e-6)
    other = rows.copy()
    other[1] = other[1, ::-1]
    found = compare(rows, other)
    assert found["divergence_max"] > 0.1
    assert found["same_top"] == pytest.approx(2 / 3)


def test_others_are_held_against_our_engine_on_the_same_set() -> None:
    ours = {"20 in": {"output_tokens_a_second": 60.0, "tokens_a_second": 1, "prompt_tokens_computed": 1}}
    ours["20 in"] |= {"prompt_tokens": 1, "outside_runner_ms_a_step": 0, "host_ms_a_step": 0}
    theirs = {"20 in": {"requests": 6, "output_tokens_a_second": 20.0}}
    text = tables({"engine 8b": {"found": ours}, "vllm 8b": {"found": theirs}, "vllm 1.5b": {"found": theirs}})
    assert "| 20 in | 6 | 20 | 3.0x |" in text
    assert "| 20 in | 6 | 20 |  |" in text


def test_a_failure_is_a_line_in_the_table() -> None:
    text = tables({"decode 8b": {"failure": "GpuUnusable: no card"}, "device": {"found": {"bytes": 1}}})
    assert "### decode 8b\n\nfailed: GpuUnusable: no card" in text
    assert "- bytes: 1" in text
    text = tables({"device": {"found": {"bytes": 1}, "failure": "not done within 3 s"}})
    assert "failed: not done within 3 s\n\n- bytes: 1" in text
