"""Values of the wire that may have one of several shapes: chosen by what is there, so that a fault names just one.

The tags stand in angle brackets, which `errors.path_of` leaves out of a parameter's path.
"""

from pydantic import BaseModel, ConfigDict, Discriminator

NOT_TEXT_NOR_LIST = "neither"
NO_SUCH_TYPE = "variant"


class Strict(BaseModel):
    """An object of the wire: no key but those named, and no `"1"` for 1."""

    model_config = ConfigDict(strict=True, extra="forbid")


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
