"""What the site does differently from Sphinx.

Names of code in the pages become links to the reference, and other words do not.

On GitHub ``problem.Problem`` is a word in the pages; in the site it leads to what the reference
says of ``resnet_limits.problem.Problem``, if it says something. In docstrings Sphinx would look up
every word of a type: of "array (seeds, rows)" it would make a link to some attribute ``seeds``.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import find_pending_xref_condition
from sphinx.util.osutil import relative_uri

PACKAGE = "resnet_limits."
_CLASSES = ("class", "exception")


class CodeLinks(SphinxPostTransform):
    """Wrap literals that name a documented object in a reference to it."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        """Go through the literals of one page."""
        known = self.env.domains["py"].objects  # type: ignore[attr-defined]
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, nodes.reference):
                continue
            name = literal.astext().removeprefix(PACKAGE)
            # A single word, such as "problem", may as well be a key or a command.
            entry = known.get(PACKAGE + name) if "." in name else None
            if entry is None or self.env.docname == entry.docname:
                continue
            uri = relative_uri(f"{self.env.docname}.html", f"{entry.docname}.html")
            link = nodes.reference("", "", internal=True, refuri=f"{uri}#{entry.node_id}")
            literal.replace_self(link)
            link += literal


class PlainTypes(SphinxPostTransform):
    """Leave words in types of parameters alone that are not names of one class."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        """Go through the references of one page."""
        known = self.env.domains["py"].objects  # type: ignore[attr-defined]
        classes = [n.rpartition(".")[2] for n, e in known.items() if e.objtype in _CLASSES]
        for found in list(self.document.findall(pending_xref)):
            target = found.get("reftarget", "")
            if found.get("refdomain") == "py" and "." not in target and classes.count(target) != 1:
                short = find_pending_xref_condition(found, "resolved")
                found.replace_self(short.children if short else found.children)


def _skip(_app: Sphinx, _what: str, _name: str, member: object, skip: bool, _: Any) -> bool:
    """Leave out the fields of tuples, which the section "Attributes" of their class explains."""
    return skip or type(member).__name__ == "_tuplegetter"


def _signature(*event: Any) -> tuple[str, str] | None:
    """Let unions with an alias of a type show its name."""
    arguments, returned = event[-2:]
    plain = [
        re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", s or "") for s in (arguments, returned)
    ]
    return (plain[0], plain[1]) if arguments else None


def _accessible(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _: Any) -> None:
    """Put right in a page what screen readers and keyboards stumble over."""
    body = context.get("body", "")
    # What scrolls can be reached by the keyboard.
    body = body.replace("<pre>", '<pre tabindex="0">')
    # A list of parameters in a signature has no terms, as a list of definitions must have.
    context["body"] = re.sub(
        r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>",
        lambda m: re.sub(r"<dd>(.*)</dd>", r'<span class="sig-line">\1</span>', m[1]),
        body,
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transforms."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    app.connect("html-page-context", _accessible)
    app.add_post_transform(CodeLinks)
    app.add_post_transform(PlainTypes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
