"""Random inputs: values of options, and files with one change as damage and mistakes make them."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

Json = Any
"""What a JSON file may hold."""
Keys = tuple[str | int, ...]
"""The keys that lead to a node of a document."""

DEPTH = 20_000
SCALARS: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 3, 10**9, 10**30, 1e308, -1e308, float("inf"), float("nan"), 0.5]),
    st.sampled_from(["", " ", "none", "nan", "yes", "1", "a/b", "..", "[red]x[/]", "[/]", "é", "\n", "\0", "x" * 500]),
    st.integers(-3, 2000),
    st.floats(width=32),
    st.text(max_size=6),
)
VALUES: st.SearchStrategy[Json] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abx_", max_size=4), inner, max_size=3),
    max_leaves=4,
)


def alike(value: Json) -> st.SearchStrategy[Json]:
    """Values of the kind that a value has, near to it and far from it: what a check of types alone takes."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.one_of(st.integers(value - 2, value + 2), st.integers(-3, 2000), st.just(10**12))
    if isinstance(value, float):
        return st.one_of(st.floats(0, 1), st.floats(width=32), st.integers(0, 5))
    if isinstance(value, list) and value:
        return st.lists(alike(value[0]), max_size=4)
    return VALUES


def paths(node: Json, prefix: Keys = ()) -> list[Keys]:
    """The paths of all nodes below a document's root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path for key, value in items for path in ((*prefix, key), *paths(value, (*prefix, key)))]


def node_at(document: Json, path: Keys) -> Json:
    """The node of a document at a path."""
    for key in path:
        document = document[key]
    return document


def changed(document: Json, path: Keys, value: Json, removed: bool) -> Json:
    """A copy of a document with the node at a path replaced, or removed."""
    result = copy.deepcopy(document)
    parent = node_at(result, path[:-1])
    if removed:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return result


@st.composite
def texts(draw: st.DrawFn, document: Json) -> str:
    """A JSON document with one change; now and then another document, no JSON, or one nested thousands deep."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        odd = ["", "{", "[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "1" + "}" * DEPTH, "\0", "é", "[1, ", "NaN"]
        return draw(st.sampled_from(odd))
    if kind == 1 or not paths(document):
        return json.dumps(draw(VALUES))
    return json.dumps(changed(document, draw(st.sampled_from(paths(document))), draw(VALUES), kind == 2))
