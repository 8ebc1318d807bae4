"""What keeps a worker from serving a model, in one sentence."""

from pathlib import Path

import onnxruntime as ort
import pytest

from jobs.settings import Settings
from tests import tiny_model
from worker import process
from worker.model import ModelError, Precision


def test_a_model_for_gpus_without_one_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    folder = tiny_model.write(tmp_path / "tiny", precision=Precision.BF16)
    with pytest.raises(ModelError, match=r"the model tiny cannot be served: the GPU cannot be used: .*for CPUs only"):
        process._load(folder, Settings())


def test_the_device_that_was_chosen_is_used(tmp_path: Path) -> None:
    folder = tiny_model.write(tmp_path / "tiny", precision=Precision.INT8)
    with pytest.raises(ModelError, match="stored in int8, which is for CPUs"):
        process._load(folder, Settings(device="cuda"))
