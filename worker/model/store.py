"""The folder that holds all models of a machine: adds, lists and removes them, in any number of processes."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from worker.model import folder, gguf, hugging_face, ready_made, sources
from worker.model.checkpoint import Checkpoint
from worker.model.errors import DamagedModel, ModelError, UnknownModel, UnsupportedModel
from worker.model.folder import ModelFolder
from worker.model.precision import Precision
from worker.model.ready_graph import ReadyGraph
from worker.model.sources import Source, Templated

# Two hyphens stand for the slash in a folder's name, so a name cannot hold them.
_NAME: Final = re.compile(r"(?!.*(--|\.\.|//))[A-Za-z0-9][A-Za-z0-9._/-]{0,198}[A-Za-z0-9]|[A-Za-z0-9]")

_TEMPLATE_CHARACTERS_MAX: Final = 1_000_000

_SCRATCH: Final = ".writing-"  # then the folder's name and a tilde, which no name holds


def _silent(_: str) -> None:
    pass


def add(
    source: str,
    models_dir: Path,
    name: str | None = None,
    precision: str | None = None,
    chat_template: str | None = None,
    progress: Callable[[str], None] = _silent,
) -> ModelFolder:
    """Fetch, convert and keep a model; give the one that is there if it is the same and whole.

    `source` is a known short name, or the path of a .gguf file or of a Hugging Face folder. Without a `precision`,
    one that is there already is taken as it is, and a new one is made in the fastest for this machine and this
    model. A `chat_template`, in Jinja, is taken instead of the model's own. Several processes may add the same
    model: one converts, the others wait for it. A model is there whole or not at all, also after a crash.
    Raises a ModelError that says what is wrong in one sentence.
    """
    wanted = sources.resolve(source)
    if chat_template is not None:
        wanted = Templated(wanted, chat_template)
    wanted_precision = Precision.parse(precision) if precision else None
    chosen = name or wanted.default_name
    target = path_of(chosen, models_dir)
    model = _present(target)
    if model is None:
        with _writing_errors(models_dir), _locked(target, progress):
            model = _present(target) or _convert(wanted, target, chosen, wanted_precision, progress)
    kept = model.manifest
    if kept.source != wanted.origin or kept.precision is not (wanted_precision or kept.precision):
        raise ModelError(
            f"a model named '{chosen}' is there already, made from {kept.source} in {kept.precision}; "
            f"remove it first with: gristmill models remove {chosen}"
        )
    return model


def open_named(name: str, models_dir: Path) -> ModelFolder:
    """Open a model by its name. Raises UnknownModel or DamagedModel."""
    path = path_of(name, models_dir)
    if not path.is_dir():
        raise UnknownModel(f"there is no model '{name}'; add it with: gristmill models add {name}")
    return folder.open_model(path)


def list_models(models_dir: Path) -> list[ModelFolder]:
    """All models that can be opened, by name; damaged ones are left out."""
    found = (model for model in _all(models_dir) if isinstance(model, ModelFolder))
    return sorted(found, key=lambda model: model.name)


def list_damaged(models_dir: Path) -> list[DamagedModel]:
    """What is wrong with each of the models that cannot be opened."""
    return [model for model in _all(models_dir) if isinstance(model, DamagedModel)]


def remove(name: str, models_dir: Path) -> None:
    """Delete a model, damaged or not. Workers that run it go on: they hold its files open.

    Raises UnknownModel if there is none of this name.
    """
    target = path_of(name, models_dir)
    if not target.is_dir():
        raise UnknownModel(f"there is no model '{name}' to remove")
    with _writing_errors(models_dir), _locked(target):
        _discard(target)


def path_of(name: str, models_dir: Path) -> Path:
    """Where a model of this name is kept. Raises UnknownModel if it cannot be a name."""
    if not _NAME.fullmatch(name):
        raise UnknownModel(
            f"'{name[:80]}' cannot be the name of a model: use up to 200 letters, digits and . _ - / , "
            "without '..', '--' or '//', a letter or digit first and last"
        )
    return models_dir / name.replace("/", "--")


def _all(models_dir: Path) -> Iterator[ModelFolder | DamagedModel]:
    for path in sorted(models_dir.glob("[!.]*/")) if models_dir.is_dir() else []:
        try:
            yield folder.open_model(path)
        except DamagedModel as damage:
            yield damage


def _present(target: Path) -> ModelFolder | None:
    """The model that is there; None if there is none, or one that must be made again."""
    try:
        return folder.open_model(target)
    except (UnknownModel, DamagedModel):
        return None


def _convert(
    source: Source, target: Path, name: str, wanted: Precision | None, progress: Callable[[str], None]
) -> ModelFolder:
    """Fetch and convert beside the target, then put it there in one move."""
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{target.name}~", dir=target.parent) as scratch:
        fetched, built = Path(scratch, "fetched"), Path(scratch, "built")
        fetched.mkdir()
        built.mkdir()
        weights = source.fetch(fetched, progress)
        progress(f"Reading {weights.name}")
        checkpoint = _read(weights, source.chat_template if isinstance(source, Templated) else None)
        precision = _precision(checkpoint, name, wanted, progress)
        if checkpoint.named_context:
            progress(
                f"{name} will be used up to {checkpoint.spec.context_length:,} tokens, not "
                f"{checkpoint.named_context:,}: for longer texts it turns all positions otherwise, "
                "also those that are in the cache already"
            )
        progress(f"Writing the {precision} graph of {name}")
        folder.write(
            built, checkpoint, name=name, source=source.origin, reference=source.reference, precision=precision
        )
        _discard(target)
        built.rename(target)
        _flush_entries(target.parent)
    progress(f"{name} is ready in {target}")
    return folder.open_model(target)


def _read(weights: Path, chat_template: str | None) -> Checkpoint:
    checkpoint = _checkpoint(weights, chat_template)
    characters = max(len(checkpoint.chat_template), len(checkpoint.tool_template or ""))
    if characters > _TEMPLATE_CHARACTERS_MAX:
        raise UnsupportedModel(
            f"{weights.name} has a chat template of {characters:,} characters, where {_TEMPLATE_CHARACTERS_MAX:,} at "
            "most were expected"
        )
    return checkpoint


def _checkpoint(weights: Path, chat_template: str | None) -> Checkpoint:
    if weights.suffix == ready_made.SUFFIX:
        return ready_made.read(weights, chat_template)
    read = hugging_face.read if weights.is_dir() else gguf.read
    return read(weights, chat_template)


def _precision(
    checkpoint: Checkpoint, name: str, wanted: Precision | None, progress: Callable[[str], None]
) -> Precision:
    """The precision that was asked for, or else the fastest; UnsupportedModel if the model cannot have it."""
    ready = checkpoint.weights if isinstance(checkpoint.weights, ReadyGraph) else None
    precision = wanted or (ready.precision if ready else Precision.preferred())
    obstacle = folder.obstacle(checkpoint, precision)
    if obstacle is None:
        return precision
    if wanted:
        remedy = "leave --precision out" if ready else "use --precision fp32"
        raise UnsupportedModel(f"{name} cannot be stored in {precision} because {obstacle}; {remedy}")
    progress(f"{name} cannot be stored in {precision} because {obstacle}; it will be fp32, which is slower")
    return Precision.FP32


def _discard(target: Path) -> None:
    """Make a folder vanish at once, then delete it at leisure."""
    if not target.exists():
        return
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{target.name}~", dir=target.parent) as scratch:
        target.rename(Path(scratch, "old"))


def _flush_entries(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(target: Path, progress: Callable[[str], None] = _silent) -> Iterator[None]:
    """One process at a time for a name; the lock ends with its process, and then its leftovers go too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Another process is at work on {target.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in target.parent.glob(f"{_SCRATCH}{target.name}~*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextmanager
def _writing_errors(models_dir: Path) -> Iterator[None]:
    """A full disk or a folder without permission, in one sentence."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{models_dir} cannot be written: {error.strerror or error}") from error
