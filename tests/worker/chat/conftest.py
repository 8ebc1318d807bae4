"""One tiny model and its chat for all tests of this folder."""

import pytest

from tests import tiny_model
from tests.worker.chat import templates
from worker.chat import Chat
from worker.model import ModelFolder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="session")
def chat(tiny: ModelFolder) -> Chat:
    return Chat(tiny, context_tokens=512, fingerprint="fp_tiny")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    """A tiny model with the template and the tokens of Qwen 3: it thinks, and its template writes tools."""
    folder = tiny_model.write(
        tmp_path_factory.mktemp("qwen") / "tiny",
        template=templates.QWEN,
        whole=["<think>", "</think>", "<tool_call>", "</tool_call>"],
    )
    return Chat(folder, context_tokens=4096, fingerprint="fp_qwen")


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    """A tiny model in which the mark of calls is a control token."""
    folder = tiny_model.write(
        tmp_path_factory.mktemp("mistral") / "tiny", template=templates.MISTRAL, control=["[TOOL_CALLS]"]
    )
    return Chat(folder, context_tokens=4096, fingerprint="fp_mistral")
