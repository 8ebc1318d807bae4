"""JSON schemas as users write them, drawn at random: nested, with bounds, patterns, choices and references."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

PATTERNS = [
    r"^[A-Z]{2}-\d{3}$",
    r"^(red|green|blue)+$",
    r"^\w{1,8}@\w{1,8}\.(com|org)$",
    r"^a",
    r"[0-9]$",
    r"^[^\n]{0,9}$",
]
# llguidance lets `time` and `date-time` have a leap second at any time of the day; the check of the answer does not.
FORMATS = ["date", "uuid", "ipv4", "ipv6", "email", "hostname", "duration"]
NAMES = st.sampled_from(["name", "age", "a b", "größe", 'quo"te', "x/y", "z~", "$id_", "", "list", "next"])
# Further planes begin with bytes that a vocabulary may lack.
SIGNS = st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-50, 50) | st.sampled_from([0.5, -1.25, 1e3]) | st.text(SIGNS, max_size=6)
)


@st.composite
def strings(draw: st.DrawFn) -> Schema:
    match draw(st.integers(0, 3)):
        case 0:
            return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
        case 1:
            return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
        case _:
            least = draw(st.integers(0, 4))
            return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 9))}


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    kind = draw(st.sampled_from(["integer", "number"]))
    low = draw(st.integers(-200, 200))
    high = low + draw(st.integers(2, 300))
    below, above = (
        draw(st.sampled_from(["minimum", "exclusiveMinimum"])),
        draw(st.sampled_from(["maximum", "exclusiveMaximum"])),
    )
    bounds = draw(st.sampled_from([{}, {below: low}, {above: high}, {below: low, above: high}]))
    if kind == "integer" and not bounds and draw(st.booleans()):
        return {"type": kind, "multipleOf": draw(st.integers(2, 30))}
    return {"type": kind, **bounds}


def leaves() -> st.SearchStrategy[Schema]:
    return st.one_of(
        strings(),
        numbers(),
        st.lists(SCALARS, min_size=1, max_size=5).map(lambda values: {"enum": values}),
        SCALARS.map(lambda value: {"const": value}),
        st.just({"type": ["boolean", "null"]}),
        st.sampled_from([{"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/code"}]),
    )


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(NAMES, inner, min_size=1, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    closed = draw(st.sampled_from([{"additionalProperties": False}, {}, {"additionalProperties": {"type": "integer"}}]))
    return {"type": "object", "properties": properties, "required": required, **closed}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    least = draw(st.integers(0, 2))
    first = draw(st.sampled_from([[], [{"type": "boolean"}]]))
    bounds = {"minItems": least, "maxItems": least + draw(st.integers(0, 3))}
    return {"type": "array", "items": draw(inner), **bounds, **({"prefixItems": first} if first else {})}


def _nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    either = st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})
    return objects(inner) | objects(inner) | arrays(inner) | either


DEFINITIONS: Schema = {
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer", "minimum": 0, "maximum": 9},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
        },
        "required": ["value"],
        "additionalProperties": False,
    },
    "code": {"type": "string", "pattern": r"^[a-f0-9]{4}$"},
}

SCHEMAS = _nested(st.recursive(leaves(), _nested, max_leaves=5)).map(lambda schema: {**schema, "$defs": DEFINITIONS})
