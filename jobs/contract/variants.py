"""Values of the wire that may have one of several shapes: chosen by what is there, so that a fault names just one.

The tags stand in angle brackets, which `errors.path_of` leaves out of a parameter's path.
"""

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, model_validator
from pydantic_core import PydanticKnownError

NOT_TEXT_NOR_LIST = "neither"
NO_SUCH_TYPE = "variant"
KEYS_MAX = 100


class Strict(BaseModel):
    """An object of the wire: no key but those named, and no `"1"` for 1.

    A body has room for millions of faults, of which one is told, and each takes some microseconds and a kilobyte: so
    lists of any length fail at their first (`fail_fast`), and objects at their number of keys.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown_keys(cls, value: object) -> object:
        """Of very many, the first stands for all."""
        if not isinstance(value, dict) or len(value) <= KEYS_MAX:
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        first = next((key for key in value if key not in known), None)
        return {key: found for key, found in value.items() if key in known or key == first}


def at_most(keys: int) -> BeforeValidator:
    """Refuses an object with more keys before any of them is looked at."""

    def checked(value: object) -> object:
        if isinstance(value, dict) and len(value) > keys:
            facts = {"field_type": "Dictionary", "max_length": keys, "actual_length": len(value)}
            raise PydanticKnownError("too_long", facts)
        return value

    return BeforeValidator(checked)


def text_or_list(of: str) -> Discriminator:
    """Chooses `<text>` or `<list>` by the value's own type; `of` is what the list holds."""
    return Discriminator(
        _text_or_list,
        custom_error_type=NOT_TEXT_NOR_LIST,
        custom_error_message=f"one of a string or array of {of}",
    )


def text_or_object(of: str) -> Discriminator:
    """Chooses `<text>` or the tag `<object>`; `of` says what may stand there."""
    return Discriminator(_text_or_object, custom_error_type=NOT_TEXT_NOR_LIST, custom_error_message=of)


def by_type(*names: str) -> Discriminator:
    """Chooses the tag `<name>` by the key `type` of an object."""
    tags = {name: f"<{name}>" for name in names}

    def choose(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return tags.get(kind) if isinstance(kind, str) else None

    return Discriminator(
        choose,
        custom_error_type=NO_SUCH_TYPE,
        custom_error_message=listed(names),
    )


def listed(names: tuple[str, ...]) -> str:
    """`'a' and 'b'`, or `'a', 'b', and 'c'`: as OpenAI lists the values it supports."""
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return ", ".join(quoted[:-1]) + f", and {quoted[-1]}"


def _text_or_list(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<list>" if isinstance(value, list) else None


def _text_or_object(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<object>" if isinstance(value, dict | BaseModel) else None
