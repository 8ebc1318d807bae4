"""The rules that OpenAI has for a schema that is to be followed strictly."""

from collections.abc import Iterator

Path = tuple[str, ...]

_MAPS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def fault_of(schema: dict[str, object]) -> str | None:
    """The first rule that is broken, in OpenAI's words."""
    if schema.get("type") != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    for path, part in _parts(schema):
        if (fault := _fault_of_object(part)) is not None:
            return f"In context={path}, {fault}"
    return None


def _fault_of_object(schema: dict[str, object]) -> str | None:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
        if schema.get("type") != "object":
            return None
    if schema.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false."
    required = schema.get("required")
    known = required if isinstance(required, list) else ()
    if missing := [name for name in properties if name not in known]:
        return (
            "'required' is required to be supplied and to be an array including every key in properties. "
            f"Missing '{missing[0]}'."
        )
    return None


def _parts(schema: dict[str, object]) -> Iterator[tuple[Path, dict[str, object]]]:
    """A schema and all in it, each with its path, from the outside in."""
    waiting: list[tuple[Path, object]] = [((), schema)]
    for path, part in waiting:
        if isinstance(part, dict):
            yield path, part
            waiting += [((*path, *step), inner) for step, inner in _inside(part)]


def _inside(part: dict[str, object]) -> Iterator[tuple[Path, object]]:
    for keyword in _MAPS:
        if isinstance(found := part.get(keyword), dict):
            yield from (((keyword, name), inner) for name, inner in found.items())
    for keyword in _LISTS:
        if isinstance(found := part.get(keyword), list):
            yield from (((keyword, str(place)), inner) for place, inner in enumerate(found))
    yield ("items",), part.get("items")
