"""onnxruntime-genai: its engine over int4 weights, in batches of as many requests as it does best with."""

import json
from collections.abc import Sequence

import exchange
import numpy as np
import onnxruntime_genai
from exchange import Ids, Task

REQUESTS_AT_ONCE = 16
EVENTS_AT_ONCE = 1024


class OnnxRuntimeGenAi:
    def __init__(self, task: Task) -> None:
        config = onnxruntime_genai.Config(str(task.model))
        config.overlay(
            json.dumps(
                {
                    "model": {"decoder": {"session_options": {"intra_op_num_threads": task.threads}}},
                    "engine": {"static_batching": {"max_batch_size": REQUESTS_AT_ONCE}},
                    "search": {"max_length": task.context_tokens},
                }
            )
        )
        self._model = onnxruntime_genai.Model(config)
        self._engine = onnxruntime_genai.Engine(self._model)
        self._events = self._engine.create_event_buffer(EVENTS_AT_ONCE)

    def answer(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        answers: dict[onnxruntime_genai.Request, Ids] = {}
        for prompt, wanted in zip(prompts, output_tokens, strict=True):
            request = self._engine.create_request()
            request.begin_turn(np.array(prompt, np.int32), _exactly(request, wanted))
            answers[request] = []
        while self._engine.has_pending_requests():
            for event in self._engine.run(self._events):
                if event.flags.value & onnxruntime_genai.EngineEventFlags.TOKEN.value:
                    answers[event.request].append(event.token)
        for request in answers:
            request.close()
        return list(answers.values())

    def notes(self) -> dict[str, float]:
        return {}


def _exactly(request: onnxruntime_genai.Request, tokens: int) -> onnxruntime_genai.TurnOptions:
    options = onnxruntime_genai.TurnOptions(request)
    options.set_do_sample(False)
    options.set_min_generated_tokens(tokens)
    options.set_max_generated_tokens(tokens)
    return options


if __name__ == "__main__":
    exchange.run(OnnxRuntimeGenAi)
