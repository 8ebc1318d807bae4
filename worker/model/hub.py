"""Models of the Hugging Face hub, fetched by its own library: its cache, its tokens, its offline switch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.model.errors import SourceUnavailable

ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""OWNER/NAME, and behind an @ the name of a branch, a tag or a commit."""

# The weights as transformers has them, and not the same once more as others do.
_WANTED: Final = ("*.json", "*.jinja", "*.safetensors")
_UNWANTED: Final = ("*/*.json", "*/*.safetensors", "consolidated*")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model by its id."""

    text: str

    @property
    def repository(self) -> str:
        return self.text.partition("@")[0]

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

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> Path:  # noqa: ARG002 (it stays in the cache)
        """The folder of the model in the library's cache. SourceUnavailable says why it cannot be had."""
        import huggingface_hub  # takes a moment, for which other commands need not wait
        from huggingface_hub import errors

        progress(f"Fetching {self.text} from the Hugging Face hub, or from its cache on this machine")
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.repository,
                    revision=self.revision,
                    allow_patterns=list(_WANTED),
                    ignore_patterns=list(_UNWANTED),
                )
            )
        except errors.GatedRepoError as error:
            raise self._unavailable("its owner asks for consent; agree on its page, then: hf auth login") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise self._unavailable("there is no such model, or it is private; then: hf auth login") from error
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
            raise self._unavailable(str(error).splitlines()[0]) from error

    def _unavailable(self, fault: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self.text} could not be fetched from the Hugging Face hub: {fault}")
