"""The parts of the benchmark, each run in a process of its own."""

import multiprocessing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, Final

from benchmarks.gpu.given import Given


def _device(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import device

    return device.measure(given)


def _logits(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import exactness

    return exactness.measure(given)


def _kernels(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import kernels

    return kernels.measure(given)


def _decode(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import steps

    return steps.measure_decode(given)


def _decode_int8(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import steps
    from worker.model.paged_graph import CacheFormat

    return steps.measure_decode(given, CacheFormat.INT8)


def _decode_fp8(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import steps
    from worker.model.paged_graph import CacheFormat

    return steps.measure_decode(given, CacheFormat.FP8)


def _prefill(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import steps

    return steps.measure_prefill(given)


def _engine(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import end_to_end

    return end_to_end.measure(given)


def _transformers(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import others

    return others.measure(given, "transformers")


def _vllm(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import others

    return others.measure(given, "vllm")


def _genai(given: Given) -> dict[str, Any]:
    from benchmarks.gpu import others

    return others.measure(given, "genai")


PARTS: Final[Mapping[str, Callable[[Given], dict[str, Any]]]] = {
    "device": _device,
    "logits": _logits,
    "kernels": _kernels,
    "decode": _decode,
    "prefill": _prefill,
    "engine": _engine,
    "transformers": _transformers,
    "vllm": _vllm,
    "genai": _genai,
    "decode-int8": _decode_int8,
    "decode-fp8": _decode_fp8,
}


def in_process(part: str, given: Given, seconds: float) -> dict[str, Any]:
    """What a part found, and why not all of it, whatever becomes of its process."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(part, given, theirs))
    began = monotonic()
    process.start()
    theirs.close()
    result: dict[str, Any] = {}
    try:
        while ours.poll(max(0.0, began + seconds - monotonic())):
            is_last, told = ours.recv()
            result |= told
            if is_last:
                return result | {"seconds": monotonic() - began}
        return result | {"failure": f"not done within {seconds:.0f} s"}
    except EOFError:
        process.join(10)
        return result | {"failure": f"its process ended with the status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _run(part: str, given: Given, results: Connection) -> None:
    """In the part's own process."""
    with suppress(ImportError):
        import torch  # noqa: F401  brings the CUDA libraries where nothing else does
    telling = replace(given, tell=lambda found: results.send((False, {"found": found})))
    try:
        results.send((True, {"found": PARTS[part](telling)}))
    except Exception as error:  # noqa: BLE001  the edge of a process: the reason goes to whoever waits
        results.send((True, {"failure": f"{type(error).__name__}: {error}"[:1000]}))
