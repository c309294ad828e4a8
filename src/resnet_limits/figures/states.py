"""Hidden states of single networks beside the limit's: over depth, and the law of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import sentence
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.kinds import SIZES, Shape


def _of_token(token: int | None) -> str:
    return "" if token is None else f" of token {token}"


# --- coordinates over depth -----------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectory:
    """Coordinates of one network over depth, and the limit's for the same embedding rows.

    Attributes
    ----------
    shape : Shape
        Sizes of the network.
    seed, step : int
        Which network of this shape, and the number of gradient steps.
    coordinates : tuple of int
        Which coordinates.
    s : ndarray, (points,)
        Depths at which the network was stored.
    finite : ndarray, (points, coordinates)
        Its residual stream for one sample.
    limit_s : ndarray, (limit points,)
        Depths at which the limit was evaluated.
    limit : ndarray, (limit points, coordinates)
        The limit's residual stream.
    token : int or None
        Which token of the sample, where there are any.
    """

    shape: Shape
    seed: int
    step: int
    coordinates: tuple[int, ...]
    s: np.ndarray
    finite: np.ndarray
    limit_s: np.ndarray
    limit: np.ndarray
    token: int | None = None


_TRAJECTORIES_CAPTION = """\
Coordinates of the hidden states h, the residual stream, over depth, for one sample at the last
saved step, in networks of growing size (one panel each); each colour and marker is one coordinate.
Points are the stored layers of the network, dashed lines the limit. Networks of all sizes share
their embedding rows, so each coordinate has its own limit, the same in all panels: its embedding
row times coefficients that are not random. The coordinates were selected by the limit alone.
Outputs are compared in the figures of losses and distances.
"""


@style.styled
def trajectories(shown: Sequence[Trajectory], why_empty: str, notes: Sequence[str] = ()) -> Picture:
    """Draw coordinates of the residual stream over depth, networks beside the limit.

    Parameters
    ----------
    shown : sequence of Trajectory
        From small to large; one panel each.
    why_empty : str
        What to say if there are none.
    notes : sequence of str
        Sentences of what is left out.

    Returns
    -------
    Picture
    """
    name, title = "trajectories", "Coordinates of the residual stream over depth"
    if not shown:
        return empty(name, title, _TRAJECTORIES_CAPTION, why_empty, notes)
    figure = new_figure(1.1, 1.0 if len(shown) > 1 else 0.6)
    axes_of = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    twin = Twin()
    for panel, axes in zip(shown, axes_of, strict=True):
        _coordinates(axes, panel, twin)
    axes_of[0].set_ylabel("coordinates of $h$")
    handles = [
        panels.mark("finite network", color=style.GREY, lw=0.8, marker="o", ms=3.0),
        panels.mark("DMFT limit", color=style.GREY, lw=1.8, ls=(0, (3, 1.6)), alpha=0.65),
    ]
    panels.key(figure, handles)
    seeds = ", ".join(dict.fromkeys(str(panel.seed) for panel in shown))
    coordinates = ", ".join(str(d) for d in shown[-1].coordinates)
    first = (
        f"Seed {seeds}, sample 0, coordinates {coordinates}{_of_token(shown[0].token)}. The limit "
        "is evaluated at the same embedding rows, which networks of all sizes share."
    )
    ends = [
        f"{style.number(_at_end(panel))} for {style.shape_words(*panel.shape)}"
        for panel in shown[:: len(shown) - 1 or 1]
    ]
    return Picture(
        name,
        f"{title}, step {shown[0].step}",
        sentence(
            "in the last layer the RMS distance of these coordinates from the limit is "
            + " and ".join(ends)
        ),
        _TRAJECTORIES_CAPTION,
        finished(figure),
        [first, *notes],
        twin.frame(),
    )


def _at_end(panel: Trajectory) -> float:
    return float(np.sqrt(((panel.finite[-1] - panel.limit[-1]) ** 2).mean()))


def _coordinates(axes: Axes, panel: Trajectory, twin: Twin) -> None:
    fixed = {**dict(zip(SIZES, panel.shape, strict=True)), "gradient_step": panel.step}
    every = max(1, len(panel.s) // 9)
    for k, coordinate in enumerate(panel.coordinates):
        colour = style.cycled(k)
        axes.plot(
            panel.s,
            panel.finite[:, k],
            color=colour,
            lw=0.8,
            marker=style.marker_of(k),
            ms=2.6,
            markevery=every,
            label="_finite",
        )
        axes.plot(
            panel.limit_s,
            panel.limit[:, k],
            color=colour,
            lw=1.8,
            ls=(0, (3, 1.6)),
            alpha=0.65,
            label="_limit",
        )
        for series, s, values in (
            ("network", panel.s, panel.finite[:, k]),
            ("DMFT limit", panel.limit_s, panel.limit[:, k]),
        ):
            twin.add(
                series=series,
                **fixed,
                seed=panel.seed,
                coordinate=coordinate,
                depth_s=s,
                hidden=values,
            )
    axes.set_title(style.shape_math(*panel.shape))
    axes.set_xlabel(r"depth $s = \ell/L$")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


# --- law of the coordinates -----------------------------------------------------------------------


@dataclass(frozen=True)
class LastLayer:
    """Coordinates of the last layer, and the standard deviation of the limit's law.

    Attributes
    ----------
    shape : Shape
        Sizes of the networks.
    step : int
        Number of gradient steps.
    values : ndarray, (samples, coordinates of all networks)
        Entries of h at s = 1.
    limit_std : ndarray, (samples,)
        sqrt(c^T G c): the limit's coordinates have mean 0.
    token : int or None
        Which token of the samples, where there are any.
    is_gaussian : bool
        Whether the limit's coordinates are Gaussian, as those of Gaussian embeddings are.
    """

    shape: Shape
    step: int
    values: np.ndarray
    limit_std: np.ndarray
    token: int | None = None
    is_gaussian: bool = True


_REACH = 4.0
"""Half the range of a histogram in standard deviations of the limit."""
_BINS = (10, 48)

_HISTOGRAMS_CAPTION = """\
Densities of the coordinates of the hidden states in the last layer at the last saved step, for
several samples (columns) and networks of growing size (rows), all seeds together. The filled
histograms show the n coordinates of the networks, in bins chosen by the rule of Freedman and
Diaconis; σ is their root mean square, and the limit's is given below it. The dashed line is the law
of the limit, a Gaussian of mean zero and variance cᵀGc, where c are the coefficients of the DMFT
limit on the embedding's columns and G is the expected Gram matrix of these columns. Networks that
diverged are counted in the notes and, if possible, replaced by others. Outputs have no such law:
they are few, and their limits are not random.
"""


@style.styled
def histograms(rows: Sequence[LastLayer], why_empty: str, notes: Sequence[str] = ()) -> Picture:
    """Draw histograms of the last layer's coordinates under the Gaussian law of the limit.

    Parameters
    ----------
    rows : sequence of LastLayer
        From small to large; one row of panels each, one column per sample.
    why_empty : str
        What to say if there are none.
    notes : sequence of str
        Sentences of what is left out.

    Returns
    -------
    Picture
    """
    name, title = "histograms", "Coordinates of the last layer"
    if not rows:
        return empty(name, title, _HISTOGRAMS_CAPTION, why_empty, notes)
    columns = len(rows[0].limit_std)
    figure = new_figure(0.25 + 0.58 * len(rows), 0.25 + 0.25 * columns)
    axes_of = figure.subplots(len(rows), columns, sharex="col", sharey="col", squeeze=False)
    twin, colours = Twin(), style.series_colours(len(rows))
    for row, colour, line in zip(rows, colours, axes_of, strict=True):
        for sample, axes in enumerate(line):
            _histogram(axes, row, sample, colour, twin)
        line[0].set_ylabel("density")
        line[0].set_title(style.shape_math(*row.shape))
    for sample, column in enumerate(axes_of.T):
        column[-1].set_xlabel(f"coordinate of $h$, sample {sample}")
        # Above is room for words.
        column[0].set_ylim(0, 1.25 * max(axes.dataLim.y1 for axes in column) or 1.0)
    law = "DMFT limit, Gaussian" if rows[0].is_gaussian else "Gaussian of the limit's variance"
    panels.key(
        figure,
        [
            panels.mark(law, color=style.limit_colour(), ls=style.DASHED, lw=1.2),
            Patch(color=style.GREY, alpha=0.5, lw=0, label="finite networks, all seeds"),
        ],
    )
    ends = [
        f"{style.number(_rms(row, 0))} for {style.shape_words(*row.shape)}"
        for row in rows[:: len(rows) - 1 or 1]
    ]
    first = f"All coordinates{_of_token(rows[0].token)} of the networks, all seeds together."
    return Picture(
        name,
        f"{title}, step {rows[0].step}",
        sentence(
            f"for sample 0 the root mean square of the coordinates is {' and '.join(ends)}, and "
            f"{style.number(float(rows[-1].limit_std[0]))} for the limit"
        ),
        _HISTOGRAMS_CAPTION,
        finished(figure),
        [first, *notes],
        twin.frame(),
    )


def _rms(row: LastLayer, sample: int) -> float:
    return float(np.sqrt((row.values[sample] ** 2).mean()))


def _edges(values: np.ndarray, reach: float) -> np.ndarray:
    """Edges of bins over the range; Freedman and Diaconis' width."""
    quarter, three = np.quantile(values, (0.25, 0.75))
    width = 2 * (three - quarter) * len(values) ** (-1 / 3)
    count = 2 * reach / width if width > 0 else 0.0
    return np.linspace(-reach, reach, int(np.clip(round(count), *_BINS)) + 1)


def _histogram(axes: Axes, row: LastLayer, sample: int, colour: str, twin: Twin) -> None:
    values, std, rms = row.values[sample], float(row.limit_std[sample]), _rms(row, sample)
    reach = _REACH * (std if std > 0 else (rms or 1.0))
    edges = _edges(values, reach)
    inside, _ = np.histogram(values, edges)
    # Coordinates beyond the range count in the norm, so that the two curves stay comparable.
    density = inside / (len(values) * np.diff(edges))
    axes.stairs(density, edges, fill=True, color=colour, alpha=0.5, lw=0)
    fixed = {**dict(zip(SIZES, row.shape, strict=True)), "gradient_step": row.step}
    outside = len(values) - int(inside.sum())
    twin.add(
        series="network",
        **fixed,
        sample=sample,
        bin_from=edges[:-1],
        bin_to=edges[1:],
        density=density,
        n=len(values),
        n_outside=outside,
        rms=rms,
    )
    if std > 0:
        x = np.linspace(-reach, reach, 101)
        law = np.exp(-0.5 * (x / std) ** 2) / (std * np.sqrt(2 * np.pi))
        axes.plot(x, law, color=style.limit_colour(), ls=style.DASHED, lw=1.2)
        twin.add(
            series="DMFT limit", **fixed, sample=sample, coordinate_value=x, density=law, rms=std
        )
    words = [f"n = {len(values)}", rf"$\sigma$ = {style.number(rms)}", f"limit {style.number(std)}"]
    if outside:
        words.append(f"{outside} outside")
    panels.small_print(axes, 0.98, 0.97, "\n".join(words), ha="right", va="top", linespacing=1.35)
    axes.set_xlim(-reach, reach)
