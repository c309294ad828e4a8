"""The causes of error one by one, each between the two models that it alone tells apart."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import (
    OBSERVABLES,
    Errors,
    ShapeErrors,
    by_shape,
    counted,
    extend,
    extremes,
    last_step,
    not_predicted,
    sentence,
)
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.fitted import Fit, fit_of, law
from resnet_limits.kinds import SIZES
from resnet_limits.laws import terms_of, variable_values
from resnet_limits.predicted import Known, Prediction, distance, known

_MANY_SHAPES = 150
"""From this number on, points are drawn smaller."""
_MOST_BESIDE = 7
"""So many shapes of one place stand beside one another; more share these places."""


class _Term(NamedTuple):
    pair: str
    variable: str
    label: str


_TERMS = (
    _Term("finite-wide", "D/(LM)", "$D/(LM)$"),
    _Term("wide-mean_ode", "L", "depth $L$"),
    _Term("mean_ode-dmft", "D", "embedding dimension $D$"),
)

_CAPTION = """\
The causes of the error, each measured alone (columns): the distance between finite and infinite
width as a function of D/(LM); between infinite width at depth L and the Mean ODE as a function of
L; and between the Mean ODE at embedding dimension D and the DMFT limit as a function of D. Above,
the hidden states of the last layer; below, the outputs.

- **Points** are shapes: the root mean square over seeds, with the limits' own error subtracted.
  **Bars** reach from the smallest to the largest seed; shapes at the same place are drawn side by
  side.
- **Shaded**: the limits' own standard error, where it is large enough to be seen. **Hollow points**
  are below resolution, that is below ten of these standard errors. They enter the fits, with that
  error in the likelihood.
- **Solid lines** are predicted from the limit alone, without training any network and without a
  free parameter. The text gives the predicted amplitude beside the fitted one.
- **Dotted lines** are fitted powers, with exponent and 95 % interval. **Dashed lines**, drawn where
  nothing is predicted, have the exponent of theory and a fitted amplitude.
- The output error between finite and infinite width is not a function of D/(LM) alone. It also has
  a term 1/√(LM), the noise of the coordinates projected on the unembedding, and the two add as
  root-sum-square. The law of both is drawn for the smallest and for the largest D; D/(LM) is seen
  alone only where D is far above √(LM). "One power" is the exponent that a single power of D/(LM)
  would have.
"""


@style.styled
def three_terms(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Picture:
    """Draw each of the three causes of error alone, with its measured exponent beside theory's.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair: ``finite-wide``, ``wide-mean_ode`` and ``mean_ode-dmft``, as many
        as were compared.
    rates : mapping
        The contents of rates.json, for the fitted curves.
    prediction : mapping or None
        The contents of prediction.json, for the solid curves.

    Returns
    -------
    Picture
    """
    name = "three_terms"
    step = last_step(errors, rates)
    title = f"The causes of the error, each alone, step {step}"
    drawn, notes = [], []
    for term in _TERMS:
        cells = by_shape(errors, term.pair, "hidden", step)
        if len(cells):
            drawn.append(term)
        else:
            notes.append(f"No panel {style.pair_name(term.pair)}: {cells.why_empty(term.pair)}")
    pairs = [term.pair for term in _TERMS]
    if not drawn:
        reason = "No cause of the error can be drawn alone."
        return empty(name, title, _CAPTION, reason, [*notes, *counted(errors, pairs, step)])
    figure = new_figure(1.9, 0.2 + 0.8 * len(drawn) / 3)
    axes_of = figure.subplots(2, len(drawn), sharex="col", squeeze=False)
    twin, message = Twin(), []
    for row, quantity in zip(axes_of, OBSERVABLES, strict=True):
        lowest, highest = np.inf, 0.0
        found = [by_shape(errors, term.pair, quantity, step) for term in drawn]
        for cells in found:
            lowest, highest = extend(cells, lowest, highest)
        # The limits' own error is shown where that does not flatten everything else.
        noises = [cells.stderr.min(initial=np.inf) for cells in found]
        bottom = min([lowest, *(noise for noise in noises if noise > lowest / 10)]) / 1.6
        for axes, term, cells in zip(row, drawn, found, strict=True):
            if not len(cells):
                panels.small_print(axes, 0.05, 0.9, textwrap.fill(cells.why_empty(term.pair), 30))
                continue
            what = _What(term, quantity, step, known(prediction, term.pair, quantity, step))
            message.append(_term_panel(axes, cells, rates, what, twin))
            _noise(axes, cells, term.variable, bottom)
        # A quarter of the height above is for words.
        panels.common_y(list(row), bottom, highest * max(4.0, (highest / bottom) ** (1 / 3)))
        row[0].set_ylabel(style.AXIS_NAMES[quantity])
    for above, below, term in zip(axes_of[0], axes_of[1], drawn, strict=True):
        colour = style.pair_colour(term.pair)
        above.set_title(style.pair_name(term.pair), color=colour, weight="bold")
        below.set_xlabel(term.label)
    panels.key(figure, panels.marks(*panels.kinds_drawn(figure)))
    return Picture(
        name,
        title,
        sentence(f"step {step}", *message),
        _CAPTION,
        finished(figure),
        [
            *notes,
            *not_predicted(errors, prediction, pairs, step),
            *counted(errors, pairs, step),
        ],
        twin.frame(),
    )


class _What(NamedTuple):
    term: _Term
    quantity: str
    step: int | None
    found: Known

    @property
    def fixed(self) -> dict[str, Any]:
        return {
            "observable": self.quantity,
            "pair": self.term.pair,
            "gradient_step": self.step,
            "variable": self.term.variable,
        }


def _variable(cells: ShapeErrors, name: str) -> np.ndarray:
    L, M, D = cells.sizes.astype(float).T
    return D / (L * M) if name == "D/(LM)" else {"L": L, "D": D}[name]


def _noise(axes: Axes, cells: ShapeErrors, name: str, bottom: float) -> None:
    """Shade the limits' standard error, or say how small it is where there is no place for it."""
    x = _variable(cells, name)
    levels = np.unique(x)
    noise = np.array([cells.stderr[x == level].max() for level in levels])
    wide = np.concatenate([[levels[0] / 10], levels, [levels[-1] * 10]])
    if noise.max() > 0 and panels.noise_band(axes, wide, np.pad(noise, 1, "edge"), bottom):
        return
    words = "limits without quadrature error"
    if noise.max() > 0:
        words = f"limits' standard error {style.number_math(noise.max())} at most"
    panels.small_print(axes, 0.03, 0.02, words, va="bottom", color=style.GREY)


def _term_panel(
    axes: Axes, cells: ShapeErrors, rates: Mapping[str, Any], what: _What, twin: Twin
) -> str:
    """Draw one panel; return what it says in words."""
    (pair, name, _), quantity, step, found = what
    look = {"color": style.pair_colour(pair), "marker": style.pair_marker(pair)}
    x = _variable(cells, name)
    _points(axes, x, cells, look)
    twin.add(series="measured", **what.fixed, value=x, **panels.error_columns(cells))
    fit, reason = fit_of(rates, pair, quantity, step)
    words = textwrap.wrap(f"no fit: {reason}", 32) if reason else []
    if len(terms_of(pair, quantity)) > 1:
        words = _sum_lines(axes, cells, fit, what, twin) or words
    else:
        ends = np.argsort(x)[[0, -1]]
        wider = np.array([1 / 1.2, 1.2])
        # Only one of the sizes of each of these two is stretched, which stretches x as much.
        sizes = cells.sizes[ends].astype(float)
        sizes[:, SIZES.index("depth" if name == "L" else "embed_dim")] *= wider
        _line(axes, x[ends] * wider, distance(found, sizes), "predicted", what, twin)
        if fit is not None and fit.get("exponent") is not None:
            words = _power_lines(axes, x, fit, what, twin)
    # An error that grows along the axis leaves room on the left, one that falls on the right.
    left = name == "D/(LM)"
    panels.small_print(
        axes,
        0.03 if left else 0.98,
        0.98,
        "\n".join(words),
        ha="left" if left else "right",
        va="top",
        linespacing=1.4,
    )
    if name == "D/(LM)":
        axes.set_xlim(x.min() / 1.7, x.max() * 1.7)
        panels.log_axis(axes, "x")
    else:
        panels.size_ticks(axes, list(x))
    return _said(cells, fit, what)


def _points(axes: Axes, x: np.ndarray, cells: ShapeErrors, look: Mapping[str, Any]) -> None:
    """Draw points, those of one place beside one another, the small shapes first."""
    rank = np.zeros(len(x), int)
    for level in np.unique(x):
        here = np.flatnonzero(x == level)
        rank[here] = (np.arange(len(here)) - (len(here) - 1) // 2) % _MOST_BESIDE
    rank = (rank + _MOST_BESIDE // 2) % _MOST_BESIDE - _MOST_BESIDE // 2
    size = 3.2 if len(cells) < _MANY_SHAPES else 1.8
    for number in np.unique(rank):
        own = rank == number
        panels.points(axes, x[own], cells.pick(own), {**look, "ms": size}, 2.0 * number)


def _line(
    axes: Axes,
    x: np.ndarray,
    curve: np.ndarray | None,
    series: str,
    what: _What,
    twin: Twin,
    **more: Any,
) -> bool:
    """Draw a law, and write it into the table; return whether there is one."""
    if curve is None or not curve.any():
        return False
    look: dict[str, Any] = {"color": style.pair_colour(what.term.pair)}
    if series == "fitted":
        look |= style.faint()
    if series == "theory":
        look = {"color": style.limit_colour(), "lw": 1.1, "ls": style.DASHED}
    label = {"predicted": "_prediction", "fitted": "_fit", "theory": "_theory"}[series]
    colour = more.pop("color", None)
    axes.plot(x, curve, label=label, zorder=2, **{**look, **({"color": colour} if colour else {})})
    twin.add(series=series, **what.fixed, value=x, error_rms=curve, **more)
    return True


def _power_lines(axes: Axes, x: np.ndarray, fit: Fit, what: _What, twin: Twin) -> list[str]:
    """Draw a fitted power, and that of theory if nothing is predicted; return what to say."""
    # The fits are in D/(LM), 1/L and 1/D: their exponents are positive.
    direct = what.term.variable == "D/(LM)"
    variable = x if direct else 1 / x
    ends = np.array([variable.min() / 1.2, variable.max() * 1.2])
    shown = ends if direct else 1 / ends
    theory, at_theory = fit.get("theory"), fit.get("amplitude_at_theory")
    if theory is not None and at_theory is not None and not what.found.is_complete:
        _line(axes, shown, at_theory * ends**theory, "theory", what, twin)
    if fit.get("amplitude") is not None:
        _line(axes, shown, fit["amplitude"] * ends ** fit["exponent"], "fitted", what, twin)
    return [
        *_amplitude_words(what.found, at_theory),
        f"exponent {_exponent_words(fit)}",
        f"theory {style.fraction(theory)}, in {style.variable_math(fit['variable'])}",
    ]


def _amplitude_words(found: Known, fitted: float | None) -> list[str]:
    """Say what amplitude is predicted, and which was fitted at the exponent of theory."""
    if len(found.amplitudes) != 1 or fitted is None:
        return []
    (amplitude,) = found.amplitudes.values()
    return [f"predicted {style.number(amplitude)}, fitted {style.number(fitted)}"]


def _exponent_words(fit: Fit) -> str:
    return style.with_interval(fit["exponent"], fit.get("exponent_interval"), style.fixed)


def _said(cells: ShapeErrors, fit: Fit | None, what: _What) -> str:
    """Say what a panel shows: its exponent, or how large the errors are."""
    if fit is None or fit.get("exponent") is None or fit.get("theory") is None:
        return f"{style.pair_name(what.term.pair)}: {extremes(cells, what.quantity)}"
    return (
        f"{what.quantity} error as {style.variable_name(str(fit['variable']))} to the power "
        f"{_exponent_words(fit)}, theory {style.fraction(fit['theory'])}"
    )


def _sum_lines(
    axes: Axes, cells: ShapeErrors, fit: Fit | None, what: _What, twin: Twin
) -> list[str]:
    """Draw laws of D/(LM) and 1/sqrt(LM), predicted and fitted; return what to say of them.

    It is no function of D/(LM) alone: there is a line for the smallest and one for the largest D.
    """
    fit, found = fit or {}, what.found
    terms: Mapping[str, Any] = fit.get("terms") or {}
    D_values = np.unique(cells.size("embed_dim"))
    D_values = D_values[[0, -1]] if len(D_values) > 1 else D_values
    keys: list[Line2D] = []
    for D, colour in zip(D_values, style.series_colours(len(D_values)), strict=True):
        own = cells.sizes[cells.size("embed_dim") == D].astype(float)
        ratio = D / (own[:, 0] * own[:, 1])
        x = np.geomspace(ratio.min() / 1.2, ratio.max() * 1.2, 40)
        # Any depth and width of the right product will do.
        sizes = np.stack([D / x, np.ones_like(x), np.full_like(x, D)], axis=-1)
        place = {"embed_dim": D, "color": colour}
        any_line = _line(axes, x, distance(found, sizes), "predicted", what, twin, **place)
        curve = law(fit, D / x, 1.0, D) if terms else None
        any_line = _line(axes, x, curve, "fitted", what, twin, **place) or any_line
        if any_line:
            keys.append(panels.mark(f"$D = {D}$", color=colour))
    amplitude = (terms.get("D/(LM)") or {}).get("amplitude")
    if amplitude and not found.is_complete:
        ratio = variable_values("D/(LM)", cells.sizes)
        ends = np.array([ratio.min() / 1.2, ratio.max() * 1.2])
        _line(axes, ends, amplitude * ends, "theory", what, twin)
    if keys:
        # Above what may be said of small noise at the lower edge.
        axes.legend(handles=keys, loc="lower right", bbox_to_anchor=(1.0, 0.06))
    said = [
        f"{style.variable_math(name)}: predicted {style.number(found.amplitudes.get(name), 2)}, "
        f"fitted {style.number((terms.get(name) or {}).get('amplitude'), 2)}"
        for name in terms or (*found.amplitudes, *found.without)
    ]
    if fit.get("exponent") is not None:
        said.append(f"one power: {_exponent_words(fit)}")
    return said
