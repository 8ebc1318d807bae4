"""Record graphs as onnxruntime-genai's model builder writes them, for `tests/worker/model/test_ready_made.py`.

Of tiny models made by Hugging Face transformers from their own config classes; without their weights, which the test
draws again from their names. It needs an environment of its own:

    python3 -m venv reference
    reference/bin/pip install torch==2.13.0 transformers==5.23.0 onnxruntime-genai==0.18.0 onnxruntime onnx onnx-ir
    reference/bin/python -m benchmarks.reference_graphs
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent.parent / "tests" / "worker" / "model" / "ready_graphs"

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 4.0],
    "long_factor": [2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0],
    "original_max_position_embeddings": 32,
}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
    "phi3": transformers.Phi3Config(**SHAPE, original_max_position_embeddings=32, rope_parameters=LONGROPE),
}
# By the name of the recorded file: the model, the builder's precision and execution provider, and its extra options.
GRAPHS: Mapping[str, tuple[str, str, str, Sequence[str]]] = {
    "llama-fp32": ("llama", "fp32", "cpu", ()),
    "llama-int4": ("llama", "int4", "cpu", ()),
    "llama-fp16": ("llama", "fp16", "cuda", ()),
    "llama-fp32-last": ("llama", "fp32", "cpu", ("prune_lm_head=true",)),
    "llama-fp16-positions": ("llama", "fp16", "dml", ()),
    "llama-fp32-other": ("llama", "fp32", "dml", ()),
    "qwen3-fp32": ("qwen3", "fp32", "cpu", ()),
    "phi3-fp32": ("phi3", "fp32", "cpu", ()),
    "llama-fp16-paged": ("llama", "fp16", "cuda", ("use_paged_attention=true", "prune_lm_head=true")),
    "llama-fp16-paged-all": ("llama", "fp16", "cuda", ("use_paged_attention=true",)),
    "qwen3-fp16-paged": ("qwen3", "fp16", "cuda", ("use_paged_attention=true", "prune_lm_head=true")),
    "phi3-fp16-paged": ("phi3", "fp16", "cuda", ("use_paged_attention=true", "paged_block_size=32")),
    "llama-bf16-paged": ("llama", "bf16", "cuda", ("use_paged_attention=true", "prune_lm_head=true")),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))  # the builder wants one, the test has its own
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in CONFIGS.items():
            AutoModelForCausalLM.from_config(config).save_pretrained(Path(scratch, name))
            tokenizer.save_pretrained(Path(scratch, name))
        for name, (model, precision, provider, options) in GRAPHS.items():
            folder = Path(scratch, "built", name)
            command = ["-i", str(Path(scratch, model)), "-o", str(folder), "-p", precision, "-e", provider]
            command += ["-c", str(Path(scratch, "cache")), *(["--extra_options", *options] if options else [])]
            subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *command], check=True)
            record(name, folder)


def record(name: str, folder: Path) -> None:
    """Keep the graph and its settings."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    (FOLDER / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    settings = json.loads((folder / "genai_config.json").read_text("utf-8"))
    (FOLDER / f"{name}.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
