"""Models of the Hugging Face hub, fetched by its own library: its cache, its tokens, its offline switch."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from worker.model import ready_made
from worker.model.errors import SourceUnavailable

ID: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w./-]+)?(@[\w./-]+)?")
"""OWNER/NAME, perhaps a folder or an ONNX graph inside it, and behind an @ the name of a branch, a tag or a commit."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model by its id."""

    text: str

    @property
    def repository(self) -> str:
        return "/".join(self._path[:2])

    @property
    def inside(self) -> PurePosixPath:
        """The folder or graph inside the repository that is meant; "." for all of it."""
        return PurePosixPath(*self._path[2:])

    @property
    def revision(self) -> str | None:
        return self.text.partition("@")[2] or None

    @property
    def default_name(self) -> str:
        return self.repository.lower()

    @property
    def reference(self) -> str:
        return self.text

    @property
    def origin(self) -> str:
        return f"hub:{self.text}"

    @property
    def _path(self) -> list[str]:
        return self.text.partition("@")[0].split("/")

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> Path:  # noqa: ARG002 (it stays in the cache)
        """The folder of the model in the library's cache, or its graph in there. SourceUnavailable says why it
        cannot be had.
        """
        progress(f"Fetching {self.text} from the Hugging Face hub, or from its cache on this machine")
        if self.inside.suffix == ready_made.SUFFIX:
            for above in self.inside.parents[:2]:
                self._snapshot(above, ("*.json", "*.jinja"))
            return self._snapshot(self.inside.parent, (f"{self.inside.name}*",)) / self.inside.name
        # The weights as transformers has them, and not the same once more as others do.
        found = self._snapshot(self.inside, ("*.json", "*.jinja", "*.safetensors"))
        if any(found.glob("*.safetensors")):
            return found
        for name in ready_made.graphs_in(found):
            if (self._snapshot(self.inside, (f"{name}*",)) / name).is_file():
                return found / name
        raise self._unavailable(
            "it has neither safetensors nor an ONNX graph of a known name; if there are models in its folders, "
            f"name one: {self.repository}/FOLDER"
        )

    def _snapshot(self, place: PurePosixPath, wanted: Sequence[str]) -> Path:
        """A folder of the repository, with the wanted of its files here, and those of none beneath it."""
        import huggingface_hub  # takes a moment, for which other commands need not wait
        from huggingface_hub import errors

        begin = "" if place == PurePosixPath() else f"{place}/"
        try:
            snapshot = huggingface_hub.snapshot_download(
                self.repository,
                revision=self.revision,
                allow_patterns=[begin + pattern for pattern in wanted],
                ignore_patterns=[f"{begin}*/*.json", f"{begin}*/*.safetensors", f"{begin}consolidated*"],
            )
            return Path(snapshot) / place
        except errors.GatedRepoError as error:
            raise self._unavailable("its owner asks for consent; agree on its page, then: hf auth login") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise self._unavailable("there is no such model, or it is private; then: hf auth login") from error
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
            raise self._unavailable(str(error).splitlines()[0]) from error

    def _unavailable(self, fault: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self.text} is no folder here, and could not be fetched from the Hugging Face hub: {fault}"
        )
