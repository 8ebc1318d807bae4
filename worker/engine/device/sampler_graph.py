"""Puts together one of the small ONNX graphs that work on logits where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, DOUBLE, INT64, INT32, UINT8 = (
    int(kind)
    for kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8)
)
_OPSET: Final = 17
"""Of newer ones some operators fall back to the CPU."""

ON_CUDA: Final = {
    *("Abs", "Add", "And", "Cast", "CumSum", "Div", "Equal", "Exp", "Floor", "Gather", "GatherElements", "GatherND"),
    *("Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Or", "Pad"),
    *("ReduceSum", "Reshape", "ScatterElements", "Slice", "Squeeze", "Sub", "TopK", "Unsqueeze", "Where"),
}
"""Operators that ONNX Runtime 1.31 computes there, in the types that they are used with here (its
docs/OperatorKernels.md). It has none there for bits, and gives ArgMax and ReduceMax to cuDNN.
"""

Shapes = dict[str, tuple[int, Sequence[Any]]]
"""Of inputs, by name: the type and the sizes."""


@dataclass(slots=True)
class SamplerGraph:
    """Nodes in the making. Values are named by who makes them."""

    vocabulary: int
    logits: int = FLOAT
    """ONNX's number of the type of the logits."""
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Of the inputs of graphs over some rows of the logits."""
        return {"logits": (self.logits, ["n", self.vocabulary]), "rows": (INT64, ["r"])}

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        self.constants[name] = np.array(value, dtype)
        return name

    def cast(self, value: str, kind: int) -> str:
        name = f"{value}.{kind}"
        if not any(name in node.output for node in self.nodes):
            self.node("Cast", [value], name, to=kind)
        return name

    def top(self, value: str, count: int, place: str, *, largest: bool = True) -> tuple[str, str]:
        """Values and indices of the largest, or least, in their order; of equals, the first."""
        k = self.constant(f"{place}.count", [count], np.int64)
        names = [f"{place}.values", f"{place}.indices"]
        self.nodes.append(helper.make_node("TopK", [value, k], names, axis=-1, largest=int(largest), sorted=1))
        return names[0], names[1]

    def sum(self, value: str, output: str, axis: int = -1, *, keepdims: bool = True) -> str:
        axes = self.constant(f"{output}.axes", [axis], np.int64)
        return self.node("ReduceSum", [value, axes], output, keepdims=int(keepdims))

    def running_sum(self, value: str, output: str, axis: int = -1, *, is_exclusive: bool = False) -> str:
        axes = self.constant(f"{output}.axis", axis, np.int64)
        return self.node("CumSum", [value, axes], output, exclusive=int(is_exclusive))

    def count(self, is_counted: str, output: str, axis: int = -1) -> str:
        """How many are true along an axis, which is kept, as int64."""
        return self.cast(self.sum(self.cast(is_counted, FLOAT), output, axis), INT64)

    def last(self, value: str, output: str, axis: int) -> str:
        """The last along an axis, which is kept."""
        bounds = {"from": -1, "to": 2**31, "axis": axis}
        names = [self.constant(f"{output}.{name}", [bound], np.int64) for name, bound in bounds.items()]
        return self.node("Slice", [value, *names], output)

    def rows(self) -> str:
        """The logits meant, float32 [R, vocabulary]."""
        meant = self.node("Gather", ["logits", "rows"], "rows.logits", axis=0)
        return meant if self.logits == FLOAT else self.cast(meant, FLOAT)

    def is_finite(self, value: str, output: str) -> str:
        """True where a float32 is a number: not where it is NaN, which is less than nothing."""
        most = self.constant(f"{output}.most", np.inf, np.float32)
        return self.node("Less", [self.node("Abs", [value], f"{output}.magnitude"), most], output)

    def save(self, inputs: Shapes, outputs: dict[str, int]) -> bytes:
        """The graph, serialized."""
        graph = helper.make_graph(
            self.nodes,
            "sampler",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        content: bytes = model.SerializeToString()
        return content
