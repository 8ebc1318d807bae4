"""Parts `transformers`, `vllm` and `genai`: the same sets through transformers' continuous batching, vLLM and
onnxruntime-genai's engine, whichever is installed; each by itself, for one of them may hang.

Written from their documentation (transformers 5.17, vLLM 0.17, onnxruntime-genai 0.18); where they are not as it says,
their failure is told.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.gpu import genai
from benchmarks.gpu.exactness import torch_model
from benchmarks.gpu.given import Given
from benchmarks.gpu.sets import SETS, TINY, PromptSet
from benchmarks.gpu.shapes import SHAPES

Answer = Callable[[list[list[int]], int], int]
"""Prompts and the tokens wanted of each answer; gives the tokens of all answers together."""


def measure(given: Given, name: str) -> dict[str, Any]:
    """Each set as far as the time allows, those of short answers first; a smaller set shows whether it runs at all."""
    package, make = _MAKERS[name]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    answer = make(given)
    vocabulary = SHAPES[given.shape].vocabulary
    chosen = TINY if given.is_tiny else SETS
    answer(PromptSet(4, 0, 16, 4).prompts(vocabulary), 4)
    found: dict[str, Any] = {}
    began = perf_counter()
    for name, whole in sorted(chosen.items(), key=lambda one: one[1].answer):
        # A part of a set is enough to tell a rate, as long as it fills the engine.
        part = PromptSet(min(whole.requests, 256), whole.shared, whole.own, whole.answer)
        if perf_counter() - began > given.seconds / 2:
            break
        started = perf_counter()
        tokens = answer(part.prompts(vocabulary), part.answer)
        seconds = perf_counter() - started
        found[name] = {"requests": part.requests, "seconds": seconds, "output_tokens_a_second": tokens / seconds}
        print(f"  {name}: {tokens / seconds:,.0f} output tokens a second", flush=True)
        given.tell(found)
    return found


def _transformers(given: Given) -> Answer:
    import torch
    from transformers import GenerationConfig

    model = torch_model(SHAPES[given.shape], given.device, filled=False)
    model.set_attn_implementation("sdpa")

    def answer(prompts: list[list[int]], tokens: int) -> int:
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        with torch.no_grad():
            outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        return sum(len(output.generated_tokens) for output in outputs.values())

    return answer


def _vllm(given: Given) -> Answer:
    from vllm import LLM, SamplingParams

    spec = SHAPES[given.shape]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": spec.tied_embeddings,
        "torch_dtype": "bfloat16",
    }
    folder = Path(tempfile.mkdtemp(prefix="shape-"))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    engine = LLM(model=str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=4096)

    def answer(prompts: list[list[int]], tokens: int) -> int:
        wanted = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return answer


_MAKERS: Final[Mapping[str, tuple[str, Callable[[Given], Answer]]]] = {
    "transformers": ("transformers", _transformers),
    "vllm": ("vllm", _vllm),
    "genai": ("onnxruntime_genai", genai.open_engine),
}
"""The package, and what opens its engine."""
