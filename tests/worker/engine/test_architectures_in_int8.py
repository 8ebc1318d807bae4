"""Of each architecture that the 8-bit graph can hold, the answers stay near those in fp32."""

from pathlib import Path

import numpy as np
import pytest

from tests.worker.model import test_architectures as proofs
from worker import model
from worker.engine.loading import open_runner
from worker.engine.quality import compare
from worker.engine.settings import EngineSettings
from worker.model import Precision, UnsupportedModel, folder, hugging_face

KNOBS = EngineSettings(threads=2, context_tokens_max=128, slots_max=8, kv_bytes_max=2**28)
FP32_ONLY = {"mistral-window", "qwen2-window", "phi-3", "gemma2", "gemma3", "olmo2"}


@pytest.mark.parametrize("name", sorted(proofs.recorded().keys() - FP32_ONLY))
def test_int8_changes_an_architecture_little(name: str, tmp_path: Path) -> None:
    config = proofs.recorded()[name]["config"]
    runners = [
        open_runner(proofs.write(tmp_path / precision, name, config, precision), KNOBS)
        for precision in (Precision.INT8, Precision.FP32)
    ]
    text = np.random.default_rng(0).integers(3, config["vocab_size"], 8 * 100)
    quality = compare(runners[0], runners[1], text, stretches=8, progress=lambda *_: None)
    assert quality.divergence < 0.05
    assert quality.same_top > 0.8


@pytest.mark.parametrize("name", sorted(FP32_ONLY))
def test_what_int8_cannot_hold_says_why(name: str, tmp_path: Path) -> None:
    config = proofs.recorded()[name]["config"]
    proofs.write(tmp_path, name, config)
    obstacle = folder.obstacle(hugging_face.read(tmp_path / "source"), Precision.INT8)
    assert obstacle is not None
    assert obstacle.startswith(("it has norms behind", "some of its layers see only"))


def test_what_int8_cannot_hold_becomes_fp32_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Precision, "preferred", lambda: Precision.INT8)
    proofs.write(tmp_path, "olmo2", proofs.recorded()["olmo2"]["config"])
    said: list[str] = []
    added = model.add(str(tmp_path / "source"), tmp_path / "models", progress=said.append)
    assert added.manifest.precision is Precision.FP32
    assert any("source cannot be stored in int8 because it has norms behind" in line for line in said)
    with pytest.raises(UnsupportedModel, match=r"because it has norms behind .*; use --precision fp32"):
        model.add(str(tmp_path / "source"), tmp_path / "models", name="other", precision="int8")
    assert [found.name for found in model.list_models(tmp_path / "models")] == ["source"]
