"""Input errors: one line that says what is wrong, where, and what is allowed.

What is allowed is read from the JSON schema, so that a message never says other bounds than those
that are checked.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

NAME_RULE = (
    "1 to 64 of A-Z a-z 0-9 . _ -, of which the first is not a dot; in quotes where it is a number"
)
"""What `values.NAME` means, in words."""

# Keys under which somebody might look for the number of tokens, and for the sizes of file data.
_OF_TOKENS = re.compile("token|sequence|seq_?len|context|block_size|n_?ctx", re.IGNORECASE)
_OF_FILES = ("samples", "inputs", "targets")


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what is allowed."""


def one_line(text: str) -> str:
    """Escape whatever would break the line or could not be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Shortener(reprlib.Repr):
    """Bounded representations, also of nested or very large values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = 60
        self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        """Say how large an integer is that is too long to be written out."""
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1024 else f"an integer of {bits} bits"


def short(value: object) -> str:
    """Write any value in few characters."""
    if value is None:
        return "nothing"
    return _Shortener().repr(value)


class _SchemaWalker:
    """Finds the allowed values of a key in the JSON schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = schema

    def _deref(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            node = self.root["$defs"][node["$ref"].rpartition("/")[2]]
        return node

    def step(self, node: Mapping[str, Any], part: str | int) -> tuple[Mapping[str, Any], bool]:
        """Follow one part of pydantic's error location.

        Returns
        -------
        node : mapping
            The schema below, or the same one where the part names none.
        is_key : bool
            Whether the part stands in the file; the choice within a union does not.
        """
        return self._below(node, part) or (self._deref(node), False)

    def _below(
        self, node: Mapping[str, Any], part: str | int
    ) -> tuple[Mapping[str, Any], bool] | None:
        """Follow one part of a location, also through the choices within a union."""
        node = self._deref(node)
        if part in node.get("properties", {}):
            return node["properties"][part], True
        if isinstance(part, int) and node.get("type") == "array":
            positions = node.get("prefixItems", [])
            return (positions[part] if part < len(positions) else node.get("items", {})), True
        if part == "[key]":
            return {"type": "string", "$comment": NAME_RULE}, False
        if "patternProperties" in node:
            return next(iter(node["patternProperties"].values())), True
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            return {"$ref": mapping[part]}, False
        found = (self._below(option, part) for option in self._options(node))
        return next(filter(None, found), None)

    def _options(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Give the schemas of which a value fulfils one."""
        if "properties" in node or "discriminator" in node:
            return []
        options: list[Mapping[str, Any]] = node.get("anyOf") or node.get("oneOf") or []
        return options

    def keys(self, node: Mapping[str, Any]) -> list[str]:
        """Keys of a section, also of one that may be left out."""
        node = self._deref(node)
        found = list(node.get("properties", {}))
        for option in self._options(node):
            found += self.keys(option)
        return found

    def tags(self, node: Mapping[str, Any]) -> str:
        """Name the kinds of a section that there are several of, also of one that may be absent."""
        node = self._deref(node)
        if "discriminator" in node:
            return ", ".join(node["discriminator"]["mapping"])
        return next(filter(None, map(self.tags, self._options(node))), "")

    def allowed(self, node: Mapping[str, Any]) -> str:
        """Say in words what a schema accepts."""
        node = self._deref(node)
        options = self._options(node)
        if options:
            return " or ".join(self.allowed(option) for option in options)
        if "discriminator" in node:
            return f"a mapping with {node['discriminator']['propertyName']} {self.tags(node)}"
        if "const" in node:
            return str(node["const"])
        if "enum" in node:
            return ", ".join(node["enum"])
        kind = node.get("type")
        if "patternProperties" in node:
            (value,) = node["patternProperties"].values()
            sizes = f"{node['minProperties']} to {node['maxProperties']} names"
            return f"a mapping of {sizes}, each with {self.allowed(value)}"
        if kind == "object":
            return f"a mapping with the keys {', '.join(node['properties'])}"
        if kind == "array":
            return self._allowed_list(node)
        if kind in ("integer", "number"):
            return ("an integer" if kind == "integer" else "a finite number") + _bounds(node)
        if kind == "string":
            return str(node["$comment"])
        return {"boolean": "true or false", "null": "nothing"}[str(kind)]

    def _allowed_list(self, node: Mapping[str, Any]) -> str:
        if "prefixItems" in node:
            return (
                f"a list of {len(node['prefixItems'])}, each {self.allowed(node['prefixItems'][0])}"
            )
        sizes = f"{node.get('minItems', 0)} to {node['maxItems']} values"
        return f"a list of {sizes}, each {self.allowed(node['items'])}"


def _bounds(node: Mapping[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and "exclusiveMaximum" in node:
        return f" from {low:g} to below {node['exclusiveMaximum']:g}"
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if isinstance(high, float) else f" from {low} to {high}"
    if low is not None:
        return f" >= {low:g}"
    most = "" if high is None else f" and <= {high:g}"
    return f" > {node['exclusiveMinimum']:g}{most}" if "exclusiveMinimum" in node else ""


def explain(error: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Turn one of pydantic's errors into ``key.path: what; allowed: which``.

    Parameters
    ----------
    error : mapping
        One of ``ValidationError.errors()``.
    schema : mapping
        JSON schema of the whole file.
    """
    walker = _SchemaWalker(schema)
    kind, location, value = error["type"], error["loc"], error["input"]
    unknown = location[-1] if kind == "extra_forbidden" else None
    node: Mapping[str, Any] = walker.root
    path: list[str] = []
    for part in location[:-1] if unknown is not None else location:
        node, is_key = walker.step(node, part)
        if is_key:
            path.append(str(part))
    if unknown is not None:
        keys = walker.keys(node)
        name = str(unknown)[:100]
        path.append(name)
        what = f"unknown key{_hint(name, location, keys)}; allowed: {', '.join(keys)}"
    elif kind == "value_error":
        what = str(error["ctx"]["error"])
    elif kind == "missing":
        what = f"missing; allowed: {walker.allowed(node)}"
    elif kind == "union_tag_not_found":
        path.append("kind")
        what = f"missing; allowed: {error['ctx'].get('expected_tags') or walker.tags(node)}"
    elif kind == "union_tag_invalid":
        path.append("kind")
        what = f"got {short(error['ctx']['tag'])}; allowed: {walker.tags(node)}"
    elif kind == "invalid_key":
        what = f"a key that is not text, {short(value)}; allowed: {walker.allowed(node)}"
    else:
        what = f"got {short(value)}; allowed: {walker.allowed(node)}"
    return f"{'.'.join(path)}: {what}" if path else what


def _hint(name: str, location: Sequence[str | int], keys: Sequence[str]) -> str:
    """Say in parentheses what somebody may have meant by a key that there is not."""
    if _OF_TOKENS.search(name):
        if "tokens" in keys:
            return " (did you mean tokens?)"
        return " (tokens come from the data alone, whose x is then (samples, tokens, inputs))"
    if tuple(location[:-1]) == ("problem", "data", "file") and name in _OF_FILES:
        return " (for data in a file, the shapes of x and y tell it)"
    near = difflib.get_close_matches(name, keys, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
