"""The smallest loop that drives a graph: prompts one by one into slots, then all a token at a time."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from worker.model.folder import ModelFolder


class GraphLoop:
    """A session with a KV cache of `slots` slots of `room` tokens, bound in place."""

    def __init__(self, model: ModelFolder, *, slots: int, room: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = ort.InferenceSession(model.graph_path, options, providers=["CPUExecutionProvider"])
        spec = model.spec
        shape = (slots, spec.kv_heads, room, spec.head_size)
        self.cache = {
            f"{index}.{part}": np.zeros(shape, model.manifest.precision.dtype)
            for index in range(spec.layers)
            for part in ("key", "value")
        }
        self.lengths = np.zeros(slots, np.int32)

    def run(self, first: int, ids: Sequence[Sequence[int]], wanted: Sequence[int]) -> NDArray[np.float32]:
        """One run over the slots from `first` on; ids [rows, new tokens]; logits [wanted, vocabulary]."""
        tokens = np.array(ids, np.int64)
        rows, new = tokens.shape
        lengths = self.lengths[first : first + rows]
        lengths += new
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("seqlens_k", lengths - np.int32(1))
        binding.bind_cpu_input("total_sequence_length", np.array(lengths.max(), np.int32))
        binding.bind_cpu_input("logits_indices", np.array(wanted, np.int64))
        binding.bind_output("logits")
        for name, array in self.cache.items():
            view = array[first : first + rows]
            place = ("cpu", 0, array.dtype.type, view.shape, view.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        self.session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The most likely continuation of each prompt, all of them decoded together."""
        last = [int(self.run(row, [ids], [len(ids) - 1]).argmax()) for row, ids in enumerate(prompts)]
        answers = [[token] for token in last]
        for _ in range(tokens - 1):
            logits = self.run(0, [[answer[-1]] for answer in answers], range(len(answers)))
            for answer, token in zip(answers, logits.argmax(axis=-1), strict=True):
                answer.append(int(token))
        return answers
