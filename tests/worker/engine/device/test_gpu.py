"""Why a GPU cannot be used, in one sentence with the cure; the runtime that would say so is played."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests import tiny_model
from tests.worker.engine.device.fake_cuda import FakeCuda
from tests.worker.engine.fake_runner import FakeRunner
from worker.engine import Device, Engine, EngineError, EngineFailed, EngineSettings, Prompt, Sampling, load
from worker.engine.device import gpu
from worker.engine.device.cuda_memory import LIBRARY, CudaError, CudaMemory
from worker.engine.device.gpu import GpuUnusable
from worker.engine.errors import OutOfMemory
from worker.engine.session import is_out_of_memory
from worker.model import Precision, paged_graph
from worker.model.onnx_file import OnnxGraph
from worker.model.paged_graph import PagedCache

CUDA_OF_ONNX_RUNTIME = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(...) CUDA failure {}: {} ; GPU=0 ; hostname=box ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=336 ; expr=..."
)
ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Gemm node. Status "
    "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(...) {}"
)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says that it was built with CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])


def loading(cuda: FakeCuda, missing: str = "") -> Callable[[str], Any]:
    def load_library(name: str) -> Any:
        if missing and name.startswith(missing):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return cuda

    return load_library


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (2, "memory is taken.*nvidia-smi"),
        (35, "driver is too old.*580"),
        (46, "another process"),
        (100, "docker run --gpus all"),
        (804, "driver is too old.*580"),
    ],
)
def test_an_error_of_the_driver_is_told_with_its_cure(status: int, cure: str) -> None:
    with pytest.raises(GpuUnusable, match=f"the GPU cannot be used: .*{cure}") as caught:
        gpu.open_memory(loading(FakeCuda(failing={"cudaSetDevice": status})))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("missing", "cure"),
    [("libcuda.so", "no NVIDIA driver.*580"), ("libcublasLt", r"libcublasLt.so.13 is missing.*gristmill\[gpu\]")],
)
def test_a_missing_library_is_named(missing: str, cure: str) -> None:
    with pytest.raises(GpuUnusable, match=cure):
        gpu.open_memory(loading(FakeCuda(), missing))


def test_an_onnx_runtime_for_cpus_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(GpuUnusable, match=r"for CPUs only.*gristmill\[gpu\]"):
        gpu.open_memory(loading(FakeCuda()))


@pytest.mark.usefixtures("offered")
def test_a_card_too_old_for_bf16_may_do_fp16() -> None:
    old = loading(FakeCuda(capability=(7, 5)))
    with pytest.raises(GpuUnusable, match=r"compute capability 7\.5.*8\.0.*--precision fp16"):
        gpu.open_memory(old)
    gpu.open_memory(old, needs_bf16=False).close()


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (CUDA_OF_ONNX_RUNTIME.format(35, "CUDA driver version is insufficient for CUDA runtime version"), "580"),
        (CUDA_OF_ONNX_RUNTIME.format(2, "out of memory"), "memory is taken"),
        ("Status Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available", "8.0 or newer"),
        (ARENA.format("Failed to allocate memory for requested buffer of size 16106127360"), "memory is taken"),
    ],
)
def test_what_onnx_runtime_says_at_opening_is_told_with_its_cure(
    text: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    memory = CudaMemory(0, FakeCuda())
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(GpuUnusable, match=cure) as caught:
        gpu.open_session(b"", memory, ort.SessionOptions(), captures=True)
    assert "onnxruntime_src" not in str(caught.value)


def test_what_onnx_runtime_raises_of_classes_of_its_own_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort.InferenceSession

    def without_cuda(content: bytes, options: Any, providers: list[Any], **others: Any) -> ort.InferenceSession:
        return real(content, options, providers=providers[1:], **others)

    graph, loaded = OnnxGraph(), tiny_model.checkpoint()
    paged_graph.build(graph, loaded.spec, loaded.weights, Precision.BF16, PagedCache())
    options = ort.SessionOptions()
    graph.give_weights(options)
    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    with pytest.raises(GpuUnusable, match="Could not find an implementation"):
        gpu.open_session(graph.content, CudaMemory(0, FakeCuda()), options, captures=True)


def test_onnx_runtime_does_not_try_again_without_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it would, and where it can say that it opened the graph."""
    tries = []

    def create(session: Any, providers: list[Any], *_: Any) -> None:
        tries.append(providers)
        raise RuntimeError(CUDA_OF_ONNX_RUNTIME.format(2, "out of memory"))

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", create)
    with pytest.raises(GpuUnusable, match="memory is taken"):
        gpu.open_session(b"", CudaMemory(0, FakeCuda()), ort.SessionOptions(), captures=False)
    assert len(tries) == 1


@pytest.mark.parametrize("kind", [RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail])
def test_a_graph_that_cannot_be_captured_is_opened_without(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Session:
        def __init__(self, content: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
            opened.append((options, providers[0][1]["enable_cuda_graph"]))
            if providers[0][1]["enable_cuda_graph"] == "1":
                raise kind(
                    "This session cannot use the graph capture feature as requested by the user as all compute graph "
                    "nodes have not been partitioned to the CUDAExecutionProvider"
                )

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    session, captures = gpu.open_capturing(b"", CudaMemory(0, FakeCuda()), ort.SessionOptions)
    assert isinstance(session, Session)
    assert not captures
    assert [captured for _, captured in opened] == ["1", "0"]
    assert opened[0][0] is not opened[1][0]


@pytest.mark.parametrize(
    "text",
    [
        ARENA.format("Failed to allocate memory for requested buffer of size 939524096"),
        ARENA.format("Available memory of 12345 is smaller than requested bytes of 939524096"),
        CUDA_OF_ONNX_RUNTIME.format(2, "out of memory"),
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=0 ; expr=cublasCreate(&cublas_handle_)",
        "CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDNN failure 2003: CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED; CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_card_that_is_full_is_no_failure(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        CUDA_OF_ONNX_RUNTIME.format(700, "an illegal memory access was encountered"),
        CUDA_OF_ONNX_RUNTIME.format(719, "unspecified launch failure"),
        "CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR ; GPU=0",
    ],
)
def test_an_error_of_the_card_ends_the_engine_and_so_its_process(text: str) -> None:
    class Broken(FakeRunner):
        def step(self, *_: Any) -> Any:
            raise RuntimeError(text)

    with Engine(Broken()) as engine:
        future = engine.submit(Prompt((1, 2), Sampling(seed=0)))
        with pytest.raises(EngineFailed):
            future.result(30)
        assert not engine.is_alive


@pytest.mark.parametrize(("device", "words"), [(Device.CPU, "--precision int8"), (Device.AUTO, "CPUs only")])
def test_a_model_for_gpus_says_what_to_do_without_one(device: Device, words: str, tmp_path: Any) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.BF16)
    with pytest.raises(EngineError, match=words):
        load(model, EngineSettings(device=device))


def test_a_model_that_can_do_without_a_gpu_uses_the_cpu_only_if_that_is_allowed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    monkeypatch.setattr("worker.engine.loading.has_cuda", lambda: True)
    with pytest.raises(GpuUnusable):
        load(model, EngineSettings(device=Device.AUTO))
    with load(model, EngineSettings(device=Device.ANY, threads=1, context_tokens_max=64)) as engine:
        assert engine.submit(Prompt((1, 2), Sampling(seed=0), 3)).result(30)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_model_for_cpus_runs_there_whatever_else_there_is(
    precision: Precision, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime has no attention in float32 for CUDA: it would take the CPU's, and keep none of what that writes."""
    model = tiny_model.write(tmp_path / "tiny", precision=precision)
    monkeypatch.setattr("worker.engine.loading.has_cuda", lambda: True)
    with load(model, EngineSettings(threads=1, context_tokens_max=64)) as engine:
        assert engine.submit(Prompt((1, 2), Sampling(seed=0), 3)).result(30)
    with pytest.raises(EngineError, match=f"stored in {precision}, which is for CPUs; .*--precision bf16"):
        load(model, EngineSettings(device=Device.CUDA))


def test_why_a_model_runs_on_the_cpu_is_told_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    caplog.set_level("INFO")
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    with load(model, EngineSettings(threads=1, context_tokens_max=64)) as engine:
        engine.submit(Prompt((1, 2), Sampling(seed=0), 3)).result(30)
    [told] = [record for record in caplog.records if record.message == "model runs on the CPU"]
    assert "for CPUs only; replace it with: pip install 'gristmill[gpu]'" in vars(told)["reason"]


def test_the_memory_of_a_card_is_copied_within_and_both_ways() -> None:
    cuda = FakeCuda()
    memory = CudaMemory(0, cuda)
    address = memory.allocate(4 * 32)
    out = memory.host_array(4 * 32)
    sent = np.arange(32, dtype=np.float32)
    memory.download(out, address)
    assert not out.any(), "new memory is not 0"
    memory.upload(address, sent)
    memory.copy_planes(address + 16, address, 8, 64, 2)  # 2 numbers of each half, 4 further
    memory.download(out, address)
    memory.wait()
    sent[4:6], sent[20:22] = sent[:2].copy(), sent[16:18].copy()
    assert out.view(np.float32).tolist() == sent.tolist()
    memory.mark()()
    assert cuda.events == 0, "an event was left behind"
    memory.close()
    assert not cuda.blocks


def test_planes_may_lie_further_apart_than_one_copy_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a cache of 130 GB for a model of 16 layers."""
    cuda = FakeCuda()
    memory = CudaMemory(0, cuda)
    monkeypatch.setattr("worker.engine.device.cuda_memory._STRIDE_MAX", 63)
    cuda.pitch_max = 63
    address, out = memory.allocate(4 * 32), memory.host_array(4 * 32)
    sent = np.arange(32, dtype=np.float32)
    memory.upload(address, sent)
    memory.copy_planes(address + 16, address, 8, 64, 2)
    memory.download(out, address)
    sent[4:6], sent[20:22] = sent[:2].copy(), sent[16:18].copy()
    assert out.view(np.float32).tolist() == sent.tolist()


def test_every_thread_says_which_card_it_means_and_is_not_hindered_by_what_others_capture() -> None:
    cuda = FakeCuda()
    memory = CudaMemory(0, cuda)
    for _ in range(2):
        memory.wait()
    with ThreadPoolExecutor(1) as other:
        other.submit(memory.wait).result()
        other.submit(memory.wait).result()
    assert len(cuda.threads) == len(set(cuda.threads)) == 2
    assert cuda.calls.count("cudaThreadExchangeStreamCaptureMode") == 2


def test_a_full_card_and_a_broken_one_are_told_apart() -> None:
    cuda = FakeCuda(free_bytes=1000)
    memory = CudaMemory(0, cuda)
    with pytest.raises(OutOfMemory):
        memory.allocate(2000)
    assert cuda.calls[-1] == "cudaGetLastError", "the error would be found by the next call"
    cuda.failing["cudaStreamSynchronize"] = 700
    with pytest.raises(CudaError, match=r"illegal memory access.*700"):
        memory.wait()
    memory.close()  # tells nobody again
    assert LIBRARY == "libcudart.so.13"
