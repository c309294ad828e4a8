"""Correlations of hidden states and gradients in networks, beside the limit's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import sentence
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.kinds import SIZES, Shape

FIELDS = ("hidden", "backward")
_SYMBOLS = {"hidden": r"$\Gamma_h$", "backward": r"$\Gamma_b$"}
_END = {"hidden": 1.0, "backward": 0.0}
"""The depth that each field has come to last."""


@dataclass(frozen=True)
class Kernels:
    """Mean products of coordinates of networks of one shape, or of the limit.

    Attributes
    ----------
    shape : Shape or None
        None for the limit.
    s : ndarray, (points,)
        Depths.
    over_depth : mapping
        By field, ``hidden`` or ``backward``, and by place, an entry of the places that are drawn:
        ndarray (seeds, points); one row for the limit.
    at_end : mapping
        By field: ndarray (seeds, sample pairs), at the depth that the field has come to last.
    """

    shape: Shape | None
    s: np.ndarray
    over_depth: dict[tuple[str, Place], np.ndarray]
    at_end: dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Which entry of a kernel: two steps and two samples."""

    step: int
    step_other: int
    sample: int
    sample_other: int

    def words(self) -> str:
        """Name it, as in ``steps 0, 14; samples 0, 1``."""
        return f"steps {self.step}, {self.step_other}; samples {self.sample}, {self.sample_other}"


_CAPTION = """\
Kernels Γ of the hidden states h (above) and of the gradients b with respect to them (below). A
kernel is the mean over coordinates of the product of two fields of the same network, at two steps
and for two samples. In the limit of infinite size, kernels are not random.

- **Left panels**: kernels over the depth s = layer/L for the steps and samples written above.
  **Points** are means over seeds of finite networks of growing size, **bars** reach from the
  smallest to the largest seed, and the **dashed line** is the DMFT limit.
- **Right panels**: kernels of networks against those of the limit at the last saved step, for every
  pair of the selected samples; hidden states are those of the last layer, gradients those of the
  first. On the dashed diagonal the two are equal.

Outputs are compared in the figures of losses and distances. Networks that diverged are counted in
the notes and, if possible, replaced by others.
"""


@style.styled
def kernels(
    networks: Sequence[Kernels],
    limit: Kernels | None,
    why_empty: str = "",
    notes: Sequence[str] = (),
) -> Picture:
    """Draw kernels of networks beside those of the limit.

    Parameters
    ----------
    networks : sequence of Kernels
        From small to large.
    limit : Kernels or None
        Of the same places and pairs of samples.
    why_empty : str
        What to say if there is no limit or no network.
    notes : sequence of str
        Sentences of what is left out.

    Returns
    -------
    Picture
    """
    name, title = "kernels", "Kernels of hidden states and gradients"
    if limit is None or not networks:
        return empty(name, title, _CAPTION, why_empty, notes)
    places = list(dict.fromkeys(place for _, place in limit.over_depth))
    figure = new_figure(1.95)
    axes_of = figure.subplots(2, len(places) + 1, squeeze=False)
    twin, message = Twin(), []
    for row, field in zip(axes_of, FIELDS, strict=True):
        for axes, place in zip(row, places, strict=False):
            _over_depth(axes, networks, limit, (field, place), twin)
            if field == FIELDS[-1]:
                axes.set_xlabel(r"depth $s = \ell/L$")
            else:
                axes.set_title(place.words().replace("; ", "\n"))
        row[0].set_ylabel(_SYMBOLS[field])
        largest = _against_limit(row[-1], networks, limit, field, twin)
        row[-1].set_ylabel(f"{_SYMBOLS[field]} of networks")
        message.append(
            f"at the last step {'Γ_h' if field == 'hidden' else 'Γ_b'} of networks with "
            f"{style.shape_words(*largest[0])} differs by {style.number(largest[1])} from that of "
            f"the limit, which is {style.number(largest[2])} (RMS over pairs of samples)"
        )
    axes_of[0][-1].set_title(f"step {places[0].step_other},\nall pairs of samples")
    axes_of[1][-1].set_xlabel(r"limit's $\Gamma$")
    several = any(len(values) > 1 for net in networks for values in net.over_depth.values())
    kinds = [*["range"] * several, "limit"]
    handles = [
        panels.mark(style.shape_math(*_shape(network)), ls="none", **_look(k, len(networks)))
        for k, network in enumerate(networks)
    ]
    panels.key(figure, [*handles, *panels.marks(*kinds)])
    return Picture(name, title, sentence(*message), _CAPTION, finished(figure), notes, twin.frame())


def _shape(network: Kernels) -> Shape:
    assert network.shape is not None
    return network.shape


def _look(number: int, count: int) -> dict[str, Any]:
    return {
        "color": style.series_colours(count)[number],
        "marker": style.marker_of(number),
        "ms": 2.8,
    }


def _columns(network: Kernels, values: np.ndarray) -> dict[str, Any]:
    sizes = {} if network.shape is None else dict(zip(SIZES, network.shape, strict=True))
    return {
        **sizes,
        "seeds": len(values),
        "kernel": values.mean(axis=0),
        "smallest_seed": values.min(axis=0),
        "largest_seed": values.max(axis=0),
    }


def _points(
    axes: Axes, x: np.ndarray, columns: dict[str, Any], look: dict[str, Any], shift: float
) -> None:
    transform = panels.shifted(axes, shift)
    low, high = columns["smallest_seed"], columns["largest_seed"]
    axes.vlines(x, low, high, colors=look["color"], lw=0.7, alpha=0.6, transform=transform)
    axes.plot(
        x, columns["kernel"], ls="none", label="_finite", zorder=3, transform=transform, **look
    )
    # What is drawn beside its place does not widen the axes by itself.
    axes.update_datalim(np.column_stack([np.tile(x, 2), np.concatenate([low, high])]))
    axes.autoscale_view()


def _over_depth(
    axes: Axes,
    networks: Sequence[Kernels],
    limit: Kernels,
    what: tuple[str, Place],
    twin: Twin,
) -> None:
    field, place = what
    fixed = {
        "field": field,
        "gradient_step": place.step,
        "gradient_step_other": place.step_other,
        "sample": place.sample,
        "sample_other": place.sample_other,
    }
    values = limit.over_depth[what]
    axes.plot(
        limit.s, values[0], color=style.limit_colour(), ls=style.DASHED, lw=1.3, label="_limit"
    )
    twin.add(series="DMFT limit", **fixed, depth_s=limit.s, kernel=values[0])
    beside = panels.shifts(len(networks), 1.6)
    for k, network in enumerate(networks):
        columns = _columns(network, network.over_depth[what])
        _points(axes, network.s, columns, _look(k, len(networks)), beside[k])
        twin.add(series="network", **fixed, depth_s=network.s, **columns)
    axes.set_xlim(-0.06, 1.06)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _against_limit(
    axes: Axes, networks: Sequence[Kernels], limit: Kernels, field: str, twin: Twin
) -> tuple[Shape, float, float]:
    """Draw networks against the limit; return the distance of the largest from it."""
    x = limit.at_end[field][0]
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, ends, color=style.limit_colour(), ls=style.DASHED, lw=1.1, label="_diagonal")
    twin.add(series="DMFT limit", field=field, limits_kernel=ends, kernel=ends)
    beside = panels.shifts(len(networks), 1.6)
    for k, network in enumerate(networks):
        columns = _columns(network, network.at_end[field])
        _points(axes, x, columns, _look(k, len(networks)), beside[k])
        twin.add(
            series="network, all pairs of samples",
            field=field,
            depth_s=_END[field],
            limits_kernel=x,
            **columns,
        )
    last = networks[-1]
    difference = last.at_end[field].mean(axis=0) - x
    rms, size = (float(np.sqrt((v**2).mean())) for v in (difference, x))
    return _shape(last), rms, size
