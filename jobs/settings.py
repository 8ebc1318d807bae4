"""What an operator may set, read once from the environment.

`DATABASE_URL` and `BROKER_URL` go by those names; every other knob is `GRISTMILL_` and its name in
capitals. An unknown `GRISTMILL_` name stops the start, so that a typing error is not a silent default.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jobs.contract import limits

PREFIX = "GRISTMILL_"
UNPREFIXED = frozenset({"database_url", "broker_url"})


class SettingsError(Exception):
    """The environment does not say what we can use; the message names the variable."""


def _aliases(told: object) -> object:
    """`alias=model`, separated by commas, as a mapping."""
    if not isinstance(told, str):
        return told
    pairs = [pair.partition("=") for pair in told.split(",") if pair.strip()]
    aliases = {alias.strip(): name.strip() for alias, _, name in pairs}
    if len(aliases) < len(pairs) or "" in {*aliases.keys(), *aliases.values()}:
        raise ValueError("it is not as 'alias=model,alias=model', each alias once")
    return aliases


def _address(*beginnings: str) -> AfterValidator:
    def check(told: str | None) -> str | None:
        if told is not None and not told.startswith(beginnings):
            raise ValueError(f"it does not begin with {' or '.join(beginnings)}")
        return told

    return AfterValidator(check)


def _upper(told: object) -> object:
    return told.upper() if isinstance(told, str) else told


class Settings(BaseModel):
    """One field a knob; the description is the user's explanation of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: Annotated[str | None, _address("postgresql://", "postgresql+psycopg://", "postgres://")] = Field(
        None, description="Postgres to use, e.g. postgresql://user@host/name. Unset: an embedded one."
    )
    broker_url: Annotated[str | None, _address("redis://", "rediss://", "redis+socket://")] = Field(
        None, description="Redis or Valkey for Celery, e.g. redis://host/0. Unset: an embedded one."
    )
    data_dir: Path = Field(
        default_factory=lambda: Path.home() / ".local" / "share" / "gristmill",
        description="Where models, the embedded servers' data and logs live.",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    database_connections: int = Field(10, ge=2, description="Connections each process may hold.")
    model_aliases: Annotated[Mapping[str, str], BeforeValidator(_aliases)] = Field(
        {}, description="Other names for models, e.g. gpt-4o-mini=smollm2-135m,gpt-4o=smollm2-135m. Unset: none."
    )
    device: Literal["auto", "cpu", "cuda", "any"] = Field(
        "auto",
        description="Where models run: auto (the GPU if ONNX Runtime was built for one), cpu, cuda, or any (the GPU if "
        "it can be used, else the CPU).",
    )
    threads: int = Field(2, ge=1, description="CPU threads one worker's model may use.")
    niceness: int = Field(5, ge=0, le=19, description="How far workers give way to what else needs a CPU.")
    slots: int = Field(
        0, ge=0, description="Sequences a worker writes at the same time; 0 is 64 on a CPU and 256 on a GPU."
    )
    sequence_tokens: int = Field(
        2048, ge=16, description="Longest prompt with its answer, in tokens, that a worker makes room for."
    )
    chunk_lines: int = Field(64, ge=1, le=4096, description="Lines a worker leases together.")
    lease_seconds: int = Field(60, ge=2, description="A process silent for this long has lost its leases to others.")
    heartbeat_seconds: float = Field(5, gt=0, description="How often a process says that it lives.")
    sweep_seconds: float = Field(5, gt=0, description="How often lost leases and late batches are looked for.")
    flush_seconds: float = Field(0.5, gt=0, description="Longest an answer waits before it is stored.")
    drain_seconds: float = Field(
        20, ge=0, description="How long a stopping worker finishes what it has begun before giving it back."
    )
    watchdog_seconds: float = Field(
        120, gt=0, description="A model that makes no progress for this long ends its worker."
    )
    requests_at_once: int = Field(
        1_024, ge=1, description="Requests an API process answers at the same time; more are told to come again."
    )
    requests_per_minute: int = Field(12_000, ge=1, description="Requests a minute that each key may make.")
    uploads_at_once: int = Field(16, ge=1, description="Uploads that each key may have under way.")
    open_batches: int = Field(1_000, ge=1, description="Batches of each key that have not ended.")
    queued_lines: int = Field(5_000_000, ge=1, description="Lines of each key in batches that have not ended.")
    stored_bytes: int = Field(100 * 1024**3, ge=1, description="Bytes of files that each project may keep.")
    retention_days: int = Field(
        30,
        ge=0,
        description="Days after its end, and when its result files are gone, that a batch's lines are deleted.",
    )
    webhooks_to_private_addresses: bool = Field(
        False, description="Let webhooks go to private addresses, and by http without TLS."
    )
    filter_words: Path | None = Field(
        None, description="File of words and patterns; a prompt or an answer that has one is filtered. Unset: none."
    )
    filter_classifier: Path | None = Field(
        None, description="Folder of an ONNX text classifier that judges prompts and answers. Unset: none."
    )
    filter_labels: str | None = Field(
        None, description="Its labels that are filtered, with the least probability: toxic=0.5,threat=0.3. Unset: all."
    )
    filter_guard: str | None = Field(
        None, description="Name of an added guard model that judges prompts and answers. Unset: none."
    )
    file_size_max: int = Field(limits.FILE_SIZE_MAX, ge=1, description="Largest upload, in bytes.")

    @classmethod
    def environment_names(cls) -> frozenset[str]:
        """Every environment variable that is read."""
        return frozenset(environment_name(field) for field in cls.model_fields)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Settings from `environment`. SettingsError names the variable that cannot be used."""
        for name in environment:
            if name.startswith(PREFIX) and name not in cls.environment_names():
                near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), cls.model_fields, n=1)
                hint = f"did you mean {environment_name(near[0])}?" if near else "list them with: gristmill settings"
                raise SettingsError(f"{name} is not a setting; {hint}")
        named = {field: environment.get(environment_name(field)) for field in cls.model_fields}
        try:
            return cls.model_validate({field: value for field, value in named.items() if value})
        except ValidationError as error:
            fault = error.errors()[0]
            field = str(fault["loc"][0])
            name = environment_name(field)
            told = "" if field in UNPREFIXED else f"={environment[name]!r}"  # an address may hold a password
            raise SettingsError(f"{name}{told} cannot be used: {fault['msg'].removeprefix('Value error, ')}.") from None


def environment_name(field: str) -> str:
    """The variable that sets `field`."""
    return field.upper() if field in UNPREFIXED else PREFIX + field.upper()
