"""llama.cpp's server over HTTP on this machine: continuous batching over the GGUF file itself, in its own 4 bits.

A slot keeps the tokens of its last prompt and computes only what differs in the next, so a shared prefix is
computed once for each slot. The cache is one for all slots, cut to what the workload needs.
"""

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import exchange
import xllamacpp
from exchange import Ids, Task

SLOTS = 16


class LlamaCpp:
    def __init__(self, task: Task) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(task.model)
        parameters.n_parallel = SLOTS
        parameters.n_ctx = SLOTS * (task.context_tokens + 1)
        parameters.cpuparams.n_threads = task.threads
        parameters.cpuparams_batch.n_threads = task.threads
        parameters.cont_batching = True
        parameters.cache_prompt = True
        parameters.cache_ram_mib = 0
        parameters.verbosity = -1
        parameters.port = 0  # any that is free
        self._server = xllamacpp.Server(parameters)

    def answer(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        with ThreadPoolExecutor(max_workers=2 * SLOTS) as pool:
            return list(pool.map(self._complete, prompts, output_tokens))

    def notes(self) -> dict[str, float]:
        return {}

    def _complete(self, prompt: Ids, tokens: int) -> Ids:
        wanted = {
            "prompt": prompt,
            "n_predict": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": True,
            "return_tokens": True,
        }
        url = f"{self._server.listening_address}/completion"
        request = urllib.request.Request(url, json.dumps(wanted).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answered:
            ids: Ids = json.load(answered)["tokens"]
        return ids


if __name__ == "__main__":
    exchange.run(LlamaCpp)
