"""What a run of ONNX Runtime that finds no memory looks like, and what does not."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, save

from worker.engine import session as sessions
from worker.engine.errors import OutOfMemory


@pytest.fixture
def expanding(tmp_path: Path) -> ort.InferenceSession:
    """A graph whose output has the shape that it is given."""
    graph = helper.make_graph(
        [helper.make_node("Expand", ["one", "shape"], ["filled"])],
        "expanding",
        [
            helper.make_tensor_value_info("one", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("filled", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    save(model, tmp_path / "expanding.onnx")
    return sessions.open_session(tmp_path / "expanding.onnx", threads=1)


def run(session: ort.InferenceSession, shape: list[int]) -> ort.IOBinding:
    binding = session.io_binding()
    binding.bind_cpu_input("one", np.ones(1, np.float32))
    binding.bind_cpu_input("shape", np.array(shape, np.int64))
    binding.bind_output("filled")
    sessions.run(session, binding)
    return binding


def test_a_run_that_finds_no_memory_says_so_and_the_next_one_works(expanding: ort.InferenceSession) -> None:
    with pytest.raises(OutOfMemory):
        run(expanding, [2**28, 2**28])
    assert run(expanding, [2, 3]).copy_outputs_to_cpu()[0].shape == (2, 3)


def test_another_fault_of_a_run_is_not_taken_for_it(expanding: ort.InferenceSession) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(expanding, [-5, 3])
    assert not isinstance(caught.value, OutOfMemory)
