"""onnxruntime-genai's engine over our own graph of a shape, which has the inputs that its paged models have."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.gpu import shapes
from benchmarks.gpu.given import Given
from worker.engine.paged.opening import page_tokens
from worker.model import ModelSpec, Precision, paged_graph

_ROWS_MAX: Final = 256
"""The most that it takes."""
_EVENTS_AT_ONCE: Final = 1024
_LENGTHS: Final = ("cumulative_sequence_lengths", "past_sequence_lengths", "block_table", "attention_metadata")


def open_engine(given: Given) -> Callable[[list[list[int]], int], int]:
    """What answers prompts greedily with so many tokens each; gives the tokens of all answers together."""
    import onnxruntime_genai as genai

    spec = shapes.SHAPES[given.shape]
    with tempfile.TemporaryDirectory(prefix="shape-") as folder:
        paged_graph.write(spec, shapes.weights(spec), Precision.BF16, Path(folder))
        Path(folder, "genai_config.json").write_text(json.dumps(_settings(spec)), "utf-8")
        engine = genai.Engine(genai.Model(genai.Config(folder)))
    events = engine.create_event_buffer(_EVENTS_AT_ONCE)

    def answer(prompts: list[list[int]], tokens: int) -> int:
        requests = []
        for prompt in prompts:
            request = engine.create_request()
            options = genai.TurnOptions(request)
            options.set_do_sample(False)
            options.set_min_generated_tokens(tokens)
            options.set_max_generated_tokens(tokens)
            request.begin_turn(np.array(prompt, np.int32), options)
            requests.append(request)
        written = 0
        while engine.has_pending_requests():
            flags = [event.flags.value for event in engine.run(events)]
            written += sum(bool(one & genai.EngineEventFlags.TOKEN.value) for one in flags)
            if any(one & genai.EngineEventFlags.FAILED.value for one in flags):
                raise RuntimeError("a request failed")
        for request in requests:
            request.close()
        return written

    return answer


def _settings(spec: ModelSpec) -> dict[str, Any]:
    """As its builder writes them beside a graph."""
    named = ("input_ids", *_LENGTHS, "logits_indices")
    caches = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    presents = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    return {
        "model": {
            "type": "llama",
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "vocab_size": spec.vocabulary,
            "context_length": spec.context_length,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "genai", "provider_options": [{"cuda": {"enable_cuda_graph": "1"}}]},
                "head_size": spec.head_size,
                "hidden_size": spec.hidden,
                "num_attention_heads": spec.heads,
                "num_hidden_layers": spec.layers,
                "num_key_value_heads": spec.kv_heads,
                "inputs": {name: name for name in named} | caches,
                "outputs": {"logits": "logits"} | presents,
                "state_groups": [{"kind": "paged_kv", "layer_ids": list(range(spec.layers))}],
            },
        },
        "search": {"max_length": spec.context_length, "past_present_share_buffer": True, "do_sample": False},
        "engine": {
            "dynamic_batching": {
                "block_size": page_tokens(spec.head_size),
                "max_batch_size": _ROWS_MAX,
                "gpu_utilization_factor": 0.9,
            }
        },
    }
