"""`system_fingerprint`: what an answer depends on beside its body."""

import hashlib
import json
from importlib import metadata

import onnxruntime as ort

from worker.model import ModelFolder


def of(model: ModelFolder) -> str:
    """Equal for equal files of a model (its precision is in them), the same ONNX Runtime, built for the same kind of
    device, and the same engine.
    """
    facts = [model.fingerprint, ort.__version__, ort.get_device(), metadata.version("gristmill")]
    return f"fp_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
