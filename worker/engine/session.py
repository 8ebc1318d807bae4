"""Opens ONNX Runtime sessions on the CPU, and tells a run that had too little memory from one that failed."""

from pathlib import Path
from typing import Final

import onnxruntime as ort

from worker.engine.errors import OutOfMemory

_HOST: Final = "Cpu"
"""What ONNX Runtime calls its memory there."""

_SIGNS_OF_NO_MEMORY = (
    *("failed to allocate", "is smaller than requested bytes", "bad_alloc", "bad allocation"),
    *("out of memory", "alloc_failed", "allocation failed", "allocation_failed", "cublas_status_not_initialized"),
)
"""As ONNX Runtime's arenas, the C++ library, and CUDA with its own libraries say it; cuBLAS says the last where it has
no memory to begin with.
"""


def has_cuda() -> bool:
    """ONNX Runtime was built with CUDA here; whether a device answers is seen when a session opens."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


def open_session(path: Path, *, threads: int) -> ort.InferenceSession:
    """Load the graph at `path` for the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Planning which tensors share memory takes 90 % of the time to open a graph of thousands of nodes, and the
    # arena finds as much at run time.
    options.enable_mem_reuse = False
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_on_host(session: ort.InferenceSession) -> set[str]:
    """The inputs that a graph reads from host memory. Bound elsewhere they are copied, on CUDA in a stream of its own,
    in which what was begun before may not have happened yet.
    """
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return {argument.name for argument, place in places if place.name == _HOST}


def is_out_of_memory(error: BaseException) -> bool:
    """Is this what ONNX Runtime or CUDA says where memory is short?"""
    return any(sign in str(error).lower() for sign in _SIGNS_OF_NO_MEMORY)


def run(session: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
    """Run a graph on what is bound. OutOfMemory if its tensors do not fit: outputs bound in place are then not
    to be relied on where this run would have written.
    """
    try:
        session.run_with_iobinding(binding, options)
    except MemoryError as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(str(error)) from error
        raise
