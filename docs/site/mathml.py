"""Formulas as MathML, made when the site is built: browsers draw them without a script.

latex2mathml translates; what browsers' MathML Core leaves out of its output is put right here. The
font is STIX Two Math, as ziamath carries it, since not every system has a font for formulas.
"""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

FONT = "STIXTwoMath-Regular.ttf"
# Letters of \mathbb that Unicode had before it had the alphabet.
_DOUBLE_STRUCK = {"C": "ℂ", "H": "ℍ", "N": "ℕ", "P": "ℙ", "Q": "ℚ", "R": "ℝ", "Z": "ℤ"}


def mathml(latex: str, *, is_block: bool) -> str:
    r"""Translate a formula.

    Parameters
    ----------
    latex : str
        The formula, without dollar signs.
    is_block : bool
        Whether it stands on a line of its own.

    Raises
    ------
    ValueError
        If it has a command that is not known; it would be shown as text.
    """
    # In \texttt an underscore is escaped for LaTeX; latex2mathml would show the backslash.
    latex = re.sub(r"\\texttt\{[^}]*\}", lambda m: m[0].replace(r"\_", "_"), latex)
    latex = latex.replace("{aligned}", "{align*}")
    # After \Big a name of a bracket would be shown as text, a bracket is not.
    for name, bracket in {r"\langle": "⟨", r"\rangle": "⟩", r"\{": "{", r"\}": "}"}.items():
        latex = re.sub(rf"(\\[bB]ig[lr]?){re.escape(name)}", rf"\1{bracket} ", latex)
    text = convert(latex, display="block" if is_block else "inline")
    if unknown := re.search(r"<m[^>]*>(?:\\[A-Za-z]+|&(?=<))|linebreak", text):
        raise ValueError(f"not understood in {latex!r}: {unknown[0].rpartition('>')[2]}")
    text = re.sub(
        r'<mi mathvariant="double-struck">([A-Z])</mi>',
        lambda m: f"<mi>{_DOUBLE_STRUCK.get(m[1], chr(0x1D538 + ord(m[1]) - ord('A')))}</mi>",
        text,
    )
    # Upright words are one piece, not letters side by side.
    text = re.sub(
        r'(?:<mi mathvariant="normal">[A-Za-z]</mi>){2,}',
        lambda m: f"<mtext>{''.join(re.findall(r'>([A-Za-z])<', m[0]))}</mtext>",
        text,
    )
    # Bars that are no brackets of their own, as in |h|^2: no operators, which sit lower and apart.
    text = re.sub(r'<mo(?: stretchy="false")?>(&#x0007C;|&#x02016;)</mo>', r"<mi>\1</mi>", text)
    # A bracket with an exponent: with something beside it, it keeps its size and place.
    text = re.sub(r"(<msu[bp](?:sup)?>)(<mo [^>]*>[^<]*</mo>)", r"\1<mrow>\2<mi></mi></mrow>", text)
    # Functions stand apart from what they are of.
    text = re.sub(r"<mi>(log|cos)</mi>(?=<m[is])", r'<mi>\1</mi><mspace width="0.17em"/>', text)
    # Accents stretch as this character, not as those that look like it.
    return re.sub(r"<mo[^>]*>&#x(?:000AF|02015);</mo>", '<mo stretchy="true">&#x203E;</mo>', text)


def _inline(translator: Any, node: nodes.math) -> None:
    _write(translator, node, is_block=False)


def _block(translator: Any, node: nodes.math_block) -> None:
    _write(translator, node, is_block=True)


def _write(translator: Any, node: nodes.Element, *, is_block: bool) -> None:
    try:
        text = mathml(node.astext(), is_block=is_block)
    except Exception as error:
        raise SphinxError(f"{node.source}:{node.line}: formula: {error}") from error
    translator.body.append(f'<div class="math">{text}</div>' if is_block else text)
    raise nodes.SkipNode


def _copy_font(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", FONT)
        shutil.copy(str(files("ziamath") / "fonts" / FONT), target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
