"""YAML text to plain values, read as a person would read it.

Numbers are decimal. Where YAML 1.1 takes something else for one, 016 for 14 and 1:30 for 90, the
line says so: a size that is not the one that is written would train another network.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from resnet_limits.config.messages import short

# Digits, far more than any number within bounds has; to convert very many takes very long.
_MAX_DIGITS = 1000
# Pairs that YAML's merge key may bring into one mapping.
_MAX_MERGED = 1000
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_TEXT = "tag:yaml.org,2002:str"
# What YAML 1.1 reads otherwise than as text, though nobody who writes it as a name means that.
_WORDS = re.compile("yes|no|on|off", re.IGNORECASE)
_NAME_KEY = "experiment"
# What is taken for a number, so that it is read or refused; more than YAML 1.1 takes for one.
_INTEGER = re.compile(
    r"[-+]?(?:0[xob][0-9a-f_]+|[0-9][0-9_]*(?::[0-5]?[0-9])*)\Z", re.ASCII | re.IGNORECASE
)
_REAL = re.compile(
    r"(?:[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:e[-+]?[0-9]+)?"
    r"|[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|\.inf)|\.nan)\Z",
    re.ASCII | re.IGNORECASE,
)


def read_yaml(text: str) -> object:
    """Read YAML text.

    Parameters
    ----------
    text : str
        The whole of a file.

    Returns
    -------
    object
        Plain values: mappings, lists, text, numbers, booleans, dates and nothing.

    Raises
    ------
    ValueError
        If it is not YAML, out of bounds, or says something else than it seems to: one line, with
        the place, and what is allowed.
    """
    try:
        content: object = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_explain(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply; allowed: one YAML mapping") from None
    return content


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with bounds, which reads what a person would or refuses it.

    Numbers are decimal: what YAML 1.1 takes for octal (016), sexagesimal (1:30), hexadecimal or
    binary is an error at its place, and 1e3 and -.5 are numbers. Where a name is wanted, as a key
    and for the experiment, yes, no, on, off and dates are the text that is written. A key that
    stands twice in a mapping is refused. Whatever stands in a file is an error
    of YAML at a place, or a plain value.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, take names as they are written, and compare its keys."""
        node = super().compose_mapping_node(anchor)
        node.value = [
            (_as_name(key), _as_name(value) if key.value == _NAME_KEY else value)
            for key, value in node.value
        ]
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {short(key.value)} appears twice; allowed: every key once",
                    problem_mark=key.start_mark,
                )
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; what has a tag that it can't have is an error at its place."""
        if isinstance(node, yaml.ScalarNode) and node.tag in (_INT, _FLOAT):
            digits = len(node.value)
            wrong = (
                f"a number of {digits} characters; allowed: at most {_MAX_DIGITS}"
                if digits > _MAX_DIGITS
                else _not_decimal(node.value)
            )
            if wrong:
                raise yaml.MarkedYAMLError(problem=wrong, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Impossible dates, and how yaml's own constructors fail at a foreign value.
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{short(node.value)} is not a valid {kind}; allowed: one YAML mapping",
                problem_mark=node.start_mark,
            ) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what the merge key names, unless that grows beyond bounds."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        parts = [
            part
            for value in merged
            for part in (value.value if isinstance(value, yaml.SequenceNode) else [value])
            if isinstance(part, yaml.MappingNode)
        ]
        for part in parts:
            self.flatten_mapping(part)
        pairs = sum(len(part.value) for part in parts)
        if pairs > _MAX_MERGED:
            raise yaml.MarkedYAMLError(
                problem=f"{pairs} merged keys; allowed: at most {_MAX_MERGED}",
                problem_mark=node.start_mark,
            )
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: Any) -> int:
        """Construct an integer, which is decimal."""
        return int(self.construct_scalar(node).replace("_", ""))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in ((_INT, _INTEGER), (_FLOAT, _REAL)):
    _Loader.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


def _as_name(node: yaml.Node) -> yaml.Node:
    """Let a word be a name, in a new node: an anchor may stand for the old one elsewhere."""
    kind = node.tag.rpartition(":")[2]
    if not isinstance(node, yaml.ScalarNode) or not (
        kind == "timestamp" or (kind == "bool" and _WORDS.fullmatch(node.value))
    ):
        return node
    return yaml.ScalarNode(_TEXT, node.value, node.start_mark, node.end_mark, node.style)


def _not_decimal(text: str) -> str | None:
    """Say what is wrong with a number that YAML would read otherwise than it looks."""
    digits = text.lstrip("+-")
    if ":" in text:
        return f"{text} is not decimal: YAML reads it to base 60; allowed: decimal numbers"
    if re.match(r"0[xob]", digits, re.IGNORECASE):
        return f"{text} is not decimal; allowed: decimal numbers"
    if re.fullmatch(r"0[0-9_]+", digits):
        plain = digits.replace("_", "").lstrip("0") or "0"
        return (
            f"{text} begins with a zero, as octal numbers do in YAML; "
            f"allowed: {plain}, or quotes around a name"
        )
    if "_" in text and not re.match(r"[0-9]{1,3}(_[0-9]{3})+(?![0-9_])", digits):
        return f"{text} is not grouped by thousands; allowed: as in 1000000 or 1_000_000"
    return None


def _explain(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        # Characters that YAML forbids; what follows the first line is yaml's own bookkeeping.
        return f"not YAML: {str(error).splitlines()[0]}; allowed: printable text"
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    if "'\\t'" in problem:
        problem = "a value begins with a tab; allowed: spaces"
    elif "allowed:" not in problem:
        problem = f"not YAML: {problem}; allowed: one YAML mapping"
    return where + problem
