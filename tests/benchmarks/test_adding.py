"""What adding a model takes, of a model that is small but for its vocabulary."""

from pathlib import Path

import pytest

from benchmarks import adding

# Of the sizes of a real one it has the vocabulary: tables of embeddings are the largest tensors there are.
SIZES = {
    "hidden_size": 768,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 65_536,
    "eos_token_id": 999,
    "max_position_embeddings": 512,
}
SHARE_MAX = 1.3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In 16 bits, in which tensors are smaller than they are computed with."""
    folder = tmp_path_factory.mktemp("adding") / "synthetic"
    adding.write(folder, "BF16", adding.CONFIG | SIZES, shard_bytes=102_000_000, tokens=1000)
    return folder


@pytest.mark.parametrize("precision", ["int8", "fp32", "bf16"])
def test_adding_a_model_takes_less_memory_than_1_3_times_its_largest_shard(
    precision: str, source: Path, tmp_path: Path
) -> None:
    shards = [path.stat().st_size for path in source.glob("*.safetensors")]
    assert len(shards) > 1
    assert adding.grown_bytes(source, tmp_path, precision) < SHARE_MAX * max(shards)
