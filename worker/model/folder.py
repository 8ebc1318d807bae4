"""A model folder: everything that a worker needs to run one model, checked before it is trusted."""

import hashlib
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from worker.model import block_graph, cache_scales, graph, paged_graph, ready_weights, taken, tokenizer, trial
from worker.model.checkpoint import Checkpoint
from worker.model.errors import DamagedModel, UnknownModel
from worker.model.manifest import MANIFEST_NAME, Manifest, OtherFormat, StoredFile
from worker.model.onnx_file import GRAPH_NAME, WEIGHTS_NAME
from worker.model.paged_graph import CacheFormat, PagedCache
from worker.model.precision import Precision
from worker.model.ready_graph import ReadyGraph
from worker.model.spec import ModelSpec
from worker.model.tokenizer import Tokenizer
from worker.model.weights import Weights

TOKENIZER_NAME: Final = "tokenizer.json"
TEMPLATE_NAME: Final = "chat_template.jinja"
TOOL_TEMPLATE_NAME: Final = "tool_template.jinja"

_BLOCK_BYTES: Final = 4096
_BLOCKS: Final = 256


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model ready to run. Its files are never changed: a new conversion is a new folder."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    @property
    def fingerprint(self) -> str:
        """Equal for two folders that give the same answers."""
        return self.manifest.fingerprint

    @property
    def graph_path(self) -> Path:
        return self.path / GRAPH_NAME

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files)

    def chat_template(self) -> str:
        """Jinja source."""
        return (self.path / TEMPLATE_NAME).read_text("utf-8")

    def tool_template(self) -> str | None:
        """Jinja source of the template for requests with tools, if that is another one."""
        if not any(file.name == TOOL_TEMPLATE_NAME for file in self.manifest.files):
            return None
        return (self.path / TOOL_TEMPLATE_NAME).read_text("utf-8")

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer; keep it, for that takes a quarter of a second."""
        return tokenizer.load(
            self.path / TOKENIZER_NAME,
            vocabulary=self.spec.vocabulary,
            eos_token_ids=self.spec.eos_token_ids,
        )


def obstacle(checkpoint: Checkpoint, precision: Precision) -> str | None:
    """What keeps a model from being stored in a precision, to follow "because"; None if nothing does."""
    weights = checkpoint.weights
    if isinstance(weights, ReadyGraph):
        return None if precision is weights.precision else "it is an ONNX graph already, which is taken as it is"
    return block_graph.obstacle(checkpoint.spec, weights) if precision is Precision.INT8 else None


def write(
    path: Path, checkpoint: Checkpoint, *, name: str, source: str, reference: str, precision: Precision
) -> ModelFolder:
    """Convert a checkpoint into an existing empty folder; when this returns, all of it is on the disk."""
    _write_graph(path, checkpoint, precision)
    (path / TOKENIZER_NAME).write_text(checkpoint.tokenizer.to_str(), "utf-8")
    (path / TEMPLATE_NAME).write_text(checkpoint.chat_template, "utf-8")
    names = [GRAPH_NAME, WEIGHTS_NAME, *taken.names_in(path), TOKENIZER_NAME, TEMPLATE_NAME]
    if checkpoint.tool_template is not None:
        (path / TOOL_TEMPLATE_NAME).write_text(checkpoint.tool_template, "utf-8")
        names.append(TOOL_TEMPLATE_NAME)
    manifest = Manifest(
        name=name,
        source=source,
        reference=reference,
        precision=precision,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        spec=checkpoint.spec,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        files=tuple(_describe(path / file_name) for file_name in names),
        is_ready_made=isinstance(checkpoint.weights, ReadyGraph),
    )
    (path / MANIFEST_NAME).write_text(manifest.as_json(), "utf-8")
    _flush(path / file_name for file_name in (*names, MANIFEST_NAME))
    _flush([path])
    return ModelFolder(path, manifest)


def _write_graph(path: Path, checkpoint: Checkpoint, precision: Precision) -> None:
    spec, weights = checkpoint.spec, checkpoint.weights
    if isinstance(weights, ReadyGraph):
        ready_weights.write(weights.model, weights.path.parent, path)
        if weights.is_paged:
            trial.check_types(path / GRAPH_NAME)
        else:
            trial.check(path / GRAPH_NAME, spec, precision)
    elif precision is Precision.INT8:
        block_graph.write(spec, weights, path)
    elif precision in (Precision.BF16, Precision.BF16_FP8, Precision.BF16_INT8):
        paged_graph.write(spec, weights, precision, path, _paged_cache(checkpoint, weights, precision))
    else:
        graph.write(spec, weights, precision, path)


def _paged_cache(checkpoint: Checkpoint, weights: Weights, precision: Precision) -> PagedCache:
    match precision:
        case Precision.BF16_FP8:
            return PagedCache(CacheFormat.FP8)
        case Precision.BF16_INT8:
            text = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)
            return PagedCache(CacheFormat.INT8, cache_scales.measure(checkpoint.spec, weights, text))
        case _:
            return PagedCache()


def open_model(path: Path) -> ModelFolder:
    """Open a folder that `write` made, after a quick check of every file: its size and a sample of its bytes.

    Raises UnknownModel if there is no such folder, DamagedModel if a file is missing, cut short or replaced.
    """
    if not path.is_dir():
        raise UnknownModel(f"there is no model folder {path}; add one with: gristmill models add NAME")
    folder = ModelFolder(path, _read_manifest(path))
    for file in folder.manifest.files:
        _check_size(folder, file)
        if _sample_digest(path / file.name) != file.sample_sha256:
            raise _damaged(folder, f"{file.name} holds something else than what was written")
    return folder


def verify(path: Path) -> ModelFolder:
    """Open a folder after reading all of it. Raises as `open_model` does."""
    folder = ModelFolder(path, _read_manifest(path))
    for file in folder.manifest.files:
        _check_size(folder, file)
        if _digest(path / file.name) != file.sha256:
            raise _damaged(folder, f"{file.name} holds something else than what was written")
    return folder


def _read_manifest(path: Path) -> Manifest:
    name = path.name.replace("--", "/")
    try:
        return Manifest.from_json((path / MANIFEST_NAME).read_text("utf-8"))
    except OtherFormat as other:
        raise DamagedModel(
            name, f"the model folder {path} is of another version; make it anew with: {_again(str(other), name)}"
        ) from other
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DamagedModel(
            name,
            f"the model folder {path} is damaged: {MANIFEST_NAME} {fault}; add it again, or: "
            f"gristmill models remove {name}",
        ) from error


def _check_size(folder: ModelFolder, file: StoredFile) -> None:
    try:
        size_bytes = (folder.path / file.name).stat().st_size
    except FileNotFoundError:
        raise _damaged(folder, f"{file.name} is missing") from None
    if size_bytes != file.size_bytes:
        raise _damaged(folder, f"{file.name} has {size_bytes:,} bytes instead of {file.size_bytes:,}")


def _damaged(folder: ModelFolder, fault: str) -> DamagedModel:
    remedy = _again(folder.manifest.reference, folder.name)
    return DamagedModel(folder.name, f"the model folder {folder.path} is damaged: {fault}; mend it with: {remedy}")


def _again(reference: str, name: str) -> str:
    """The command that adds a model under the name that it has."""
    quoted = shlex.quote(reference)
    return f"gristmill models add {quoted if reference == name else f'{quoted} --name {name}'}"


def _describe(path: Path) -> StoredFile:
    return StoredFile(path.name, path.stat().st_size, _digest(path), _sample_digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample_digest(path: Path) -> str:
    """The SHA-256 of a file's first and last block and of blocks spread evenly between them."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        return hashlib.sha256(b"".join(_blocks(file, size_bytes))).hexdigest()


def _blocks(file: BinaryIO, size_bytes: int) -> Iterable[bytes]:
    if size_bytes <= _BLOCKS * _BLOCK_BYTES:
        yield file.read()
        return
    for index in range(_BLOCKS):
        file.seek((size_bytes - _BLOCK_BYTES) * index // (_BLOCKS - 1))
        yield file.read(_BLOCK_BYTES)


def _flush(paths: Iterable[Path]) -> None:
    """Bring files, or the entries of a folder, to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
