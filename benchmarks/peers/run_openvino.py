"""OpenVINO GenAI: continuous batching over int8 weights, with its prefix cache.

The settings are the best of those tried on two cores: docs/performance.md names them. Its cache is looked up
when a request is added, so prompts that share a prefix hit it only if one of them is done before the others
come in; that one runs first, inside the time measured.
"""

from collections.abc import Sequence

import exchange
import numpy as np
import openvino
import openvino_genai
from exchange import Ids, Task

CACHE_GB = 4
STEP_TOKENS = 1024
SEQUENCES = 256


class OpenVino:
    def __init__(self, task: Task) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.max_num_seqs = SEQUENCES
        properties = {"INFERENCE_NUM_THREADS": task.threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(task.model), scheduler, "CPU", properties)
        self._runs_one_first = task.has_shared_prefix

    def answer(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        first = 1 if self._runs_one_first else 0
        ahead = self._generate(prompts[:first], output_tokens[:first])
        return ahead + self._generate(prompts[first:], output_tokens[first:])

    def notes(self) -> dict[str, float]:
        return {}

    def _generate(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        handles = [
            self._pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), _exactly(wanted))
            for number, (prompt, wanted) in enumerate(zip(prompts, output_tokens, strict=True))
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [list(map(int, handle.read_all()[0].generated_ids)) for handle in handles]


def _exactly(tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.min_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    exchange.run(OpenVino)
