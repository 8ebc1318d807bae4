"""One tiny model and its chat for all tests of this folder."""

import pytest

from tests import tiny_model
from worker.chat import Chat
from worker.model import ModelFolder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="session")
def chat(tiny: ModelFolder) -> Chat:
    return Chat(tiny, context_tokens=512, fingerprint="fp_tiny")
