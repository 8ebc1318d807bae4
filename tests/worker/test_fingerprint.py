"""A `system_fingerprint` tells apart what may answer otherwise."""

from importlib import metadata
from pathlib import Path

import onnxruntime as ort
import pytest

from tests import tiny_model
from worker import fingerprint
from worker.model.precision import Precision


def test_it_is_equal_for_equal_files_and_differs_with_weights_and_precision(tmp_path: Path) -> None:
    first, same = (tiny_model.write(tmp_path / name) for name in ("first", "same"))
    other = tiny_model.write(tmp_path / "other", seed=1)
    rounded = tiny_model.write(tmp_path / "rounded", precision=Precision.FP16)
    assert fingerprint.of(first) == fingerprint.of(same)
    assert len({fingerprint.of(model) for model in (first, other, rounded)}) == 3


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [(ort, "__version__", "0.0.1"), (ort, "get_device", lambda: "ABACUS"), (metadata, "version", lambda _: "0.0.1")],
)
def test_it_differs_with_the_runtime_and_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, value: object
) -> None:
    model = tiny_model.write(tmp_path / "tiny")
    before = fingerprint.of(model)
    monkeypatch.setattr(place, name, value)
    assert fingerprint.of(model) != before
    assert before.startswith("fp_")
