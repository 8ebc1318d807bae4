"""What all tests share: the demo's model, fetched and converted once."""

import os
from pathlib import Path

import pytest

from worker import model
from worker.model import ModelFolder

_MODELS_DIR = Path(__file__).parent.parent / ".gristmill" / "models"


@pytest.fixture(scope="session")
def smollm2() -> ModelFolder:
    """SmolLM2-135M-Instruct in fp32; GRISTMILL_TEST_MODELS names another folder to keep it in."""
    return model.add("smollm2-135m", models_dir=Path(os.environ.get("GRISTMILL_TEST_MODELS", _MODELS_DIR)))
