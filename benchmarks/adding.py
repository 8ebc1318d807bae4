"""What memory it takes to add a model: one of a real shape with random weights, as Hugging Face publishes them.

    python -m benchmarks.adding FOLDER [--stored BF16] [--precisions int8 fp32 ...]

writes it into the folder (3 GB, 5 GB with F32) and adds it once in each precision, each time in a process of its own.
Counted is all that the process has resident at its peak, pages of mapped files too, beyond what it has once everything
is imported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from worker import model
from worker.model import byte_level

# Llama 3.2 1B with 12 of its 16 layers: two shards.
CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 128_255,
}
SHARD_BYTES: Final = {"BF16": 1_000_000_000, "F32": 2_000_000_000}
TEMPLATE: Final = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
_NOISE: Final = 1 << 22


def write(
    folder: Path,
    stored: str,
    config: dict[str, Any] = CONFIG,
    shard_bytes: int | None = None,
    tokens: int | None = None,
) -> int:
    """Write the model into a folder, which is made; gives the size of its largest shard.

    Without `tokens`, it has as many as its vocabulary.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    end = "<|end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "chat_template": TEMPLATE}), "utf-8")
    (folder / "tokenizer.json").write_text(_tokenizer((tokens or config["vocab_size"]) - 1, end).to_str(), "utf-8")
    element = np.dtype(np.uint16 if stored == "BF16" else np.float32)
    shards = _cut(_shapes(config), element.itemsize, shard_bytes or SHARD_BYTES[stored])
    places = {}
    for number, shapes in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shapes, stored, element)
        places |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def grown_bytes(source: Path, models_dir: Path, precision: str) -> int:
    """What a process of its own has resident at most while it adds the model, beyond what its imports take."""
    command = [sys.executable, "-m", "benchmarks.adding", "--measure", str(source), str(models_dir), precision]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    return int(done.stdout)


def _measure(source: str, models_dir: str, precision: str) -> None:
    before = _resident_peak()
    model.add(source, Path(models_dir), name="measured", precision=precision)
    print(_resident_peak() - before)


def _resident_peak() -> int:
    """Not what getrusage says, which a process has from the one that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def _cut(shapes: dict[str, tuple[int, ...]], element_bytes: int, shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """In order, as much into each as goes into it."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * element_bytes
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = shape
        room -= size
    return shards


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], stored: str, element: np.dtype[Any]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * element.itemsize
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for piece in _noise(shape, element):
                file.write(piece.tobytes())


def _noise(shape: tuple[int, ...], element: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The same numbers over and over: there are too many to draw them all."""
    drawn = np.random.default_rng(shape).standard_normal(_NOISE, np.float32) / np.float32(np.sqrt(shape[-1]))
    block = drawn if element.itemsize == 4 else (drawn.view(np.uint32) >> 16).astype(element)
    left = int(np.prod(shape))
    while left:
        piece = block[:left]
        left -= len(piece)
        yield piece


def _tokenizer(tokens: int, end: str) -> Tokenizer:
    """Byte-level BPE with as many tokens, each of them made of two before it, and one that ends an answer."""
    random = np.random.default_rng(0)
    ids = {sign: place for place, sign in enumerate(byte_level.BYTE_OF_SIGN)}
    words, merges = list(ids), []
    while len(words) < tokens:
        left, right = (words[int(place)] for place in random.integers(0, min(len(words), 4096), 2))
        if left + right not in ids:
            ids[left + right] = len(words)
            words.append(left + right)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--stored", choices=SHARD_BYTES, default="BF16")
    parser.add_argument("--precisions", nargs="+", default=["int8", "fp32", "fp16", "bf16"])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        _measure(*chosen.measure)
        return
    source = chosen.folder / f"synthetic-{chosen.stored.lower()}"
    largest = (
        max(path.stat().st_size for path in source.glob("*.safetensors"))
        if source.exists()
        else write(source, chosen.stored)
    )
    print(f"largest shard {largest / 1e9:.2f} GB, {chosen.stored}")
    for precision in chosen.precisions:
        began = monotonic()
        with tempfile.TemporaryDirectory(dir=chosen.folder) as models_dir:
            grown = grown_bytes(source, Path(models_dir), precision)
        print(f"{precision:<6} {grown / 1e9:.2f} GB, {grown / largest:.2f} of it, {monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
