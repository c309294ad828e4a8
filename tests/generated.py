"""Experiment files drawn from the schema: valid ones, and valid ones with one thing spoilt."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st

from resnet_limits.config import json_schema

_SCHEMA = json_schema()
_FORMS = [tuple(form["required"]) for form in _SCHEMA["$defs"]["SweepConfig"]["oneOf"]]
# What the data take must fit into a test, and what is drawn must not be refused together.
_MOST = {"samples": 40, "inputs": 40, "targets": 40, "tokens": 12}
_FILE_SAMPLES = 3
"""Samples of the file that the tests write, without tokens and with one-hot targets."""
_MIXING = ("attention_head", "convolution")
_WITH_TOKENS = [node for node in _SCHEMA["$defs"].values() if "tokens" in node["properties"]]
_ONE_HOT = ("digits", "characters", "file")
_NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True)


def _deref(node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = _SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _options(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Schemas of which a value fulfils one; nothing stands for a key that is left out."""
    options = [] if "properties" in node else [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [option for option in map(_deref, options) if option.get("type") != "null"]


# --- valid ones -----------------------------------------------------------------------------------


def _numbers(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    low = node.get("minimum", node.get("exclusiveMinimum"))
    high = node.get("maximum", node.get("exclusiveMaximum"))
    if node["type"] == "integer":
        return st.integers(low, high)
    # What all runs have, and what is at the ends.
    below = "exclusiveMaximum" in node
    return st.one_of(
        st.floats(max(low, 1e-3), min(high, 10.0), exclude_max=below),
        st.floats(low, high, exclude_min="exclusiveMinimum" in node, exclude_max=below),
    )


def _value(draw: st.DrawFn, node: Mapping[str, Any], key: str = "") -> Any:
    """Draw what one part of the schema accepts by itself."""
    node = _deref(node)
    options = _options(node)
    if options:
        return _value(draw, draw(st.sampled_from(options)), key)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return draw(st.sampled_from(node["enum"]))
    match node["type"]:
        case "boolean":
            return draw(st.booleans())
        case "integer" if key in _MOST:
            return draw(st.integers(node["minimum"], _MOST[key]))
        case "integer" | "number":
            return draw(_numbers(node))
        case "string":
            return "1/6" if key == "exponent" else draw(_NAMES)
        case "array":
            if "prefixItems" in node:
                return [_value(draw, item) for item in node["prefixItems"]]
            count = draw(st.integers(node.get("minItems", 0), min(node["maxItems"], 4)))
            return [_value(draw, node["items"]) for _ in range(count)]
    if "patternProperties" in node:
        (below,) = node["patternProperties"].values()
        names = draw(st.lists(_NAMES, min_size=1, max_size=2, unique=True))
        return {name: _value(draw, below) for name in names}
    required = node.get("required", [])
    return {
        name: _value(draw, below, name)
        for name, below in node["properties"].items()
        if name in required or draw(st.booleans())
    }


def _agreeing(draw: st.DrawFn, values: dict[str, Any], data_file: str) -> None:
    """Change what is valid by itself but not together with the rest."""
    _agreeing_model(draw, values)
    data, sweep = values["problem"]["data"], values["sweep"]
    if data["kind"] == "file":
        data["path"] = data_file
        data.pop("positions", None)
    elif data["kind"] not in _ONE_HOT and values["problem"].get("loss") == "cross_entropy":
        del values["problem"]["loss"]
    _agreeing_training(values.get("training", {}), _samples(data))
    form = draw(st.sampled_from(_FORMS))
    properties = _SCHEMA["$defs"]["SweepConfig"]["properties"]
    for name in {name for names in _FORMS for name in names}:
        sweep.pop(name, None)
    sweep |= {name: _value(draw, properties[name], name) for name in form}
    for family in sweep.get("families", {}).values():
        family["parameters"] = [min(P, 1e9) for P in family["parameters"]]
        for size in (family["depth"], family["embed_dim"]):
            size["factor"] = min(size["factor"], 1.0)
    if values.get("model", {}).get("initial_law", "gaussian") != "gaussian":
        sweep["pairs"] = ["finite-dmft"]
        if sweep.get("engine") == "implicit":
            del sweep["engine"]
    if isinstance(sweep.get("seeds"), list):
        counts = sorted((step["seeds"] for step in sweep["seeds"]), reverse=True)
        bounds = sorted(draw(st.sets(st.integers(1, 10**18), min_size=4, max_size=4)))
        sweep["seeds"] = [
            {"parameters": bound, "seeds": count}
            for bound, count in zip(bounds, counts[:-1], strict=False)
        ] + [{"seeds": counts[-1]}]
    save, steps = values.get("save", {}), values.get("training", {}).get("steps", 15)
    if isinstance(save.get("steps"), list):
        save["steps"] = [step % steps for step in save["steps"]]
    if save.get("depth_points") == "all":
        save["depth_points"] = 17


def _samples(data: dict[str, Any]) -> int:
    """Give the number of samples, where one is the default."""
    samples: int = _FILE_SAMPLES if data["kind"] == "file" else data.get("samples", 1)
    return samples


def _agreeing_model(draw: st.DrawFn, values: dict[str, Any]) -> None:
    """Give layers in one form alone, and units data that have the tokens they work on."""
    model, problem = values.get("model", {}), values["problem"]
    if "unit" in model and "layer" in model:
        del model[draw(st.sampled_from(["unit", "layer"]))]
    units = [section.get("unit", {}) for section in (model, *model.get("layer", ()))]
    if "tokens" not in problem["data"] and any(unit.get("kind") in _MIXING for unit in units):
        problem["data"] = _value(draw, draw(st.sampled_from(_WITH_TOKENS)))
    for unit in units:
        if "offsets" in unit:
            tokens = problem["data"]["tokens"]
            unit["offsets"] = [offset % (2 * tokens - 1) - tokens + 1 for offset in unit["offsets"]]


def _agreeing_training(training: dict[str, Any], samples: int) -> None:
    """Give lists what each update of the steps needs, and rates and rules what they need."""
    schedule, batches = training.get("schedule", {}), training.get("batches")
    if "schedule" in training:
        schedule.setdefault("kind", "constant")
    if isinstance(batches, list):
        training["batches"] = [
            list(dict.fromkeys(sample % samples for sample in batch)) for batch in batches
        ]
        training["steps"] = len(batches) + 1
    elif batches is not None:
        batches["size"] = (batches["size"] - 1) % samples + 1
    if "factors" in schedule and isinstance(batches, list):
        schedule["factors"] = ([*schedule["factors"], *[1.0] * len(batches)])[: len(batches)]
    elif "factors" in schedule:
        training["steps"] = len(schedule["factors"]) + 1
    rule = training.get("rule", {})
    if rule.get("nesterov") and not rule.get("momentum"):
        rule["momentum"] = 0.5
    if not training.get("train_embeddings"):
        for name in ("learning_rate_embedding", "learning_rate_unembedding"):
            training.pop(name, None)


@st.composite
def valid(draw: st.DrawFn, data_file: str = "data.npz") -> dict[str, Any]:
    """Draw the values of a valid experiment file, all keys of the schema among them."""
    values: dict[str, Any] = _value(draw, _SCHEMA)
    _agreeing(draw, values, data_file)
    return values


# --- bad ones -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A bad file, and the key where it is bad: nothing for text that is no YAML."""

    content: bytes
    place: str


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a file, but the whole."""
    keys: Any = values if isinstance(values, dict) else ()
    for key in range(len(values)) if isinstance(values, list) else keys:
        yield (*path, key)
        yield from places(values[key], (*path, key))


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


# Values that nothing accepts, whatever its type and bounds.
NOWHERE = {
    "text": "two words",
    "mapping": {"two words": 1},
    "list": [[["deep"]]],
    "negative": -0.5,
    "nan": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "huge integer": 10**40,
    "huge number": 1e40,
    "binary": b"\x00\xff",
    "line break": "a\nb",
    "not printable": "\x07\u202e",
}
NAMES = (
    "../x", "a/b", "..", ".", "", ".hidden", "CON", "nul.txt", "lpt1", "a\n", "a b", "x" * 65, "é",
    "/etc/passwd", "a\\b", "~", "$HOME", "{width}", "*", "a\x00", 7, True, None, ["a"],
)  # fmt: skip
# Pieces that end a valid file, each an error in any.
ENDS = {
    "tab": "\n\ttraining: 1\n",
    "bracket": "\nx: [1, 2\n",
    "brace": "\nx: {a: 1\n",
    "quote": "\nx: 'a\n",
    "alias": "\nx: *nowhere\n",
    "second document": "\n---\nseed: 1\n",
    "second key": "\nproblem: {}\n",
    "colons": "\nx: a: b\n",
    "forbidden character": "\nx: \x01\n",
    "not UTF-8": b"\nx: \xff\xfe\n",
    "half a character": b"\nx: \xe2\x82",
    "python call": "\nx: !!python/object/apply:os.system ['touch {marker}']\n",
    "python object": "\nx: !!python/object/new:os.system ['touch {marker}']\n",
    "python name": "\nx: !!python/name:os.system\n",
    "python module": "\nx: !!python/module:os\n",
    "foreign tag": "\nx: !mine 1\n",
    "impossible date": "\nx: 2024-13-40\n",
    "no integer": "\nx: !!int 'one'\n",
    "empty integer": "\nx: !!int ''\n",
    "no flag": "\nx: !!bool 'perhaps'\n",
    "no time": "\nx: !!timestamp 'now'\n",
    "many digits": "\nx: " + "7" * 5000 + "\n",
    "sexagesimal integer": "\nx: 1" + ":10" * 5000 + "\n",
    "sexagesimal number": "\nx: 1" + ":10" * 300 + ".5\n",
    "deep": "\nx: " + "{a: " * 3000 + "\n",
    "merged with itself": "\nx: &x {<<: *x}\n",
    "key that is a list": "\n? [a]\n: 1\n",
}


WAYS = (
    "beyond a bound", "unknown key", "missing", *(f"value: {name}" for name in NOWHERE),
    *(f"name: {name!r}" for name in NAMES), *(f"text: {name}" for name in ENDS),
)  # fmt: skip
"""All that can be wrong with a file that is drawn by `bad`."""


@st.composite
def bad(draw: st.DrawFn, way: str, marker: str, data_file: str = "data.npz") -> Bad:
    """Draw a file that is bad in one of `WAYS`; if it could run code it would create `marker`."""
    values = copy.deepcopy(draw(valid(data_file)))
    path: tuple[Any, ...]
    kind, _, detail = way.partition(": ")
    match kind:
        case "value":
            path = draw(st.sampled_from(list(places(values))))
            _at(values, path[:-1])[path[-1]] = NOWHERE[detail]
        case "beyond a bound":
            path, wrong = draw(st.sampled_from(_beyond(values)))
            _at(values, path[:-1])[path[-1]] = wrong
        case "unknown key":
            sections = [(), *(p for p in places(values) if isinstance(_at(values, p), dict))]
            sections = [p for p in sections if p != ("sweep", "families")]
            section = draw(st.sampled_from(sections))
            key = draw(st.text(max_size=9) | st.integers() | st.booleans() | st.just("__use_yte__"))
            key = f"x{key}" if isinstance(key, str) else key
            _at(values, section)[key] = draw(st.sampled_from([1, "a", None, [], {}]))
            # What is no text has no place of its own.
            path = (*section, key) if isinstance(key, str) else section
        case "missing":
            path = draw(st.sampled_from(_required(values)))
            del _at(values, path[:-1])[path[-1]]
        case "name":
            path = ("experiment",)
            values["experiment"] = next(name for name in NAMES if repr(name) == detail)
        case "text":
            end = ENDS[detail]
            if isinstance(end, str):
                end = end.replace("{marker}", marker).encode()
            return Bad(yaml.safe_dump(values, allow_unicode=True).encode() + end, "")
    text = yaml.safe_dump(values, allow_unicode=draw(st.booleans()), sort_keys=draw(st.booleans()))
    return Bad(text.encode(), ".".join(map(str, path)))


def _beyond(values: dict[str, Any]) -> list[tuple[tuple[Any, ...], int | float]]:
    """Places of numbers, each with the nearest ones that the schema has beyond its bounds."""
    found: list[tuple[tuple[Any, ...], int | float]] = []
    for path in places(values):
        node = _below(path, values)
        if node.get("type") == "integer":
            found += [(path, node["minimum"] - 1), (path, node["maximum"] + 1)]
            found.append((path, 10**9 + 1 if node["maximum"] < 10**9 else 10**20))
        elif node.get("type") == "number":
            if "exclusiveMaximum" in node:
                found.append((path, node["exclusiveMaximum"]))
            else:
                wide = 1e-9 * max(1.0, abs(node["maximum"]))
                found.append((path, node["maximum"] + wide))
            found.append((path, node.get("minimum", 0.0) - 1e-15))
    return found


def _required(values: dict[str, Any]) -> list[tuple[Any, ...]]:
    found = [
        path
        for path in places(values)
        if isinstance(path[-1], str)
        and path[-1] in _below(path[:-1], values).get("required", [])
        # What is left of a sweep without one of its sizes is complained of as a whole.
        and path[0] != "sweep"
        # A unit without a kind is a perceptron.
        and path[-2:] != ("unit", "kind")
    ]
    return [("experiment",), ("problem",), ("sweep",), *found]


def _chosen(node: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """Find the schema of a valid value among those of a union, also of one within another."""
    node = _deref(node)
    if "discriminator" in node:
        if "kind" in value:
            return _deref({"$ref": node["discriminator"]["mapping"][value["kind"]]})
        # The one of which the kind may be left out.
        return next(o for o in _options(node) if "kind" not in o.get("required", ()))
    options = _options(node)
    if not options:
        return node
    kind = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}
    wanted = {kind.get(type(value), "number"), "number" if type(value) is int else ""}
    # A number where text may stand too is checked as a number.
    found = (_chosen(option, value) for option in options)
    return next((option for option in found if option.get("type") in wanted), {})


def _below(path: tuple[Any, ...], values: Any) -> Mapping[str, Any]:
    """Find the schema of the value at some place."""
    node: Mapping[str, Any] = _SCHEMA
    for part in (*path, None):
        node = _chosen(node, values)
        if part is None:
            break
        values = values[part]
        if isinstance(part, int):
            items = node.get("prefixItems")
            node = items[part] if items else node["items"]
        elif "patternProperties" in node:
            (node,) = node["patternProperties"].values()
        else:
            node = node["properties"][part]
    return node
