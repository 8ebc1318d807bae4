"""A client of the API: it speaks HTTP, by TCP or over a unix socket, and knows nothing of the database."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
import pydantic

from jobs.contract.batch import ENDPOINT, Batch

# An upload may be large and its check slow; to find out that nobody listens takes no time.
TIMEOUT = httpx.Timeout(120, connect=5)
PAGE = 100


class ApiError(Exception):
    """The server refused, in its own words; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be granted a moment later."""
        return self.status in (429, 502, 503, 504)


class Unreachable(ApiError):
    """Nobody answered, or the connection was lost before the answer was complete."""

    @property
    def is_passing(self) -> bool:
        """It may be starting."""
        return True


class Client:
    """One project's view of one server. Every method raises ApiError in a sentence."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        socket: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if socket is not None:
            transport = httpx.HTTPTransport(uds=str(socket))
        if not url.startswith(("http://", "https://")):
            raise ApiError(f"'{url}' is not the address of a server, which begins with http:// or https://.")
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/").removesuffix("/v1"),  # with it, as other clients want it, is right too
                # A key read from a file or typed may hold anything; only visible ASCII can be sent.
                headers={"Authorization": f"Bearer {key.strip()}".encode("ascii", "replace").decode()},
                timeout=TIMEOUT,
                transport=transport,
                trust_env=False,  # a proxy of the environment is not for a server of our own
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ApiError(f"{url} is not the address of a server: {error}.") from error
        self._place = "the server" if socket is not None else url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def is_healthy(self) -> bool:
        """Whether the server answers and can reach its database."""
        try:
            return self._http.get("/healthz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def upload(self, file: BinaryIO, filename: str) -> str:
        """Send the lines of a batch, whatever their file is called here; the id of the file."""
        filename = filename if filename.endswith(".jsonl") else f"{filename}.jsonl"  # the only name that is taken
        answer = self._ask("POST", "/v1/files", files={"file": (filename, file)}, data={"purpose": "batch"})
        return str(_json(answer)["id"])

    def create(
        self, input_file_id: str, *, window: str, idempotency_key: str | None = None, metadata: Mapping[str, str]
    ) -> Batch:
        """Make a batch of an uploaded file, or find the one made before with the same key."""
        order = {
            "input_file_id": input_file_id,
            "endpoint": ENDPOINT,
            "completion_window": window,
            "metadata": dict(metadata),
        }
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _batch(self._ask("POST", "/v1/batches", json=order, headers=headers))

    def retrieve(self, batch_id: str) -> Batch:
        """The batch as it is now."""
        return _batch(self._ask("GET", f"/v1/batches/{_segment(batch_id)}"))

    def cancel(self, batch_id: str) -> Batch:
        """Stop a batch; what is answered stays."""
        return _batch(self._ask("POST", f"/v1/batches/{_segment(batch_id)}/cancel"))

    def batches(self) -> Iterator[Batch]:
        """Every batch, newest first, read page by page."""
        after: dict[str, str] = {}
        while True:
            page = _json(self._ask("GET", "/v1/batches", params={"limit": PAGE, **after}))
            found = [_parsed(item) for item in page["data"]]
            yield from found
            if not page["has_more"] or not found:
                return
            after = {"after": found[-1].id}

    def has_file(self, file_id: str) -> bool:
        """Whether a file is still kept."""
        try:
            self._ask("GET", f"/v1/files/{_segment(file_id)}")
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return False
            raise
        return True

    def download(self, file_id: str, target: Path) -> None:
        """Write a file's bytes to `target`, which changes in one moment or not at all."""
        if target.exists() and not target.is_file():  # a device or a pipe, which a rename would replace
            with target.open("wb") as file:
                self._read_into(file_id, file)
            return
        draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with draft.open("wb") as file:
                self._read_into(file_id, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _read_into(self, file_id: str, file: BinaryIO) -> None:
        try:
            with self._http.stream("GET", f"/v1/files/{_segment(file_id)}/content") as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                file.writelines(answer.iter_bytes())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, **parts: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **parts)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(f"Nobody answers at {self._place} ({reason}); start one with: gristmill up")


def _refusal(answer: httpx.Response) -> ApiError:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {answer.status_code} {answer.reason_phrase}".rstrip() + "."
    return ApiError(message, answer.status_code)


def _batch(answer: httpx.Response) -> Batch:
    return _parsed(_json(answer))


def _parsed(value: object) -> Batch:
    try:
        return Batch.model_validate(value)
    except pydantic.ValidationError as error:
        raise ApiError("The server's answer is not a batch; is it a Gristmill of another version?") from error


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError("The server's answer is not JSON; is it a Gristmill?")
    return value


def _segment(name: str) -> str:
    """An id as one step of a path, whatever was typed."""
    if not name or not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise ApiError(f"'{name[:80]}' is not an id.")
    return name
