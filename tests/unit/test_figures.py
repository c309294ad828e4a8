"""Figures show the numbers they are given, say what is missing, and are the same every time."""

from __future__ import annotations

import itertools
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import Study

from resnet_limits import fitted as fits
from resnet_limits.config import Shape
from resnet_limits.errors.rates import fit_rates
from resnet_limits.figures import panels, style
from resnet_limits.figures import terms as causes
from resnet_limits.figures.cells import by_shape
from resnet_limits.figures.picture import FORMS, PICTURES, Picture, Twin, new_figure
from resnet_limits.fitted import rates_table_rows
from resnet_limits.predicted import Known
from resnet_limits.problem import embedding_rows, make_problem
from resnet_limits.stages.figures import figure
from resnet_limits.stages.paths import FIGURE_FORMS, FIGURES, figure_names
from resnet_limits.store import StoreError

LAST = 14


def small(**sweep) -> Study:
    grid = {"depth": [4, 8, 16], "width": [8, 32, 128], "embed_dim": [8, 32, 128]}
    return Study(synthetic.experiment(sweep={"grid": grid, "seeds": 3, **sweep}))


def one_depth() -> Study:
    return small(grid={"depth": [50], "width": [1, 8, 64], "embed_dim": [1, 8, 64]})


def some_diverged() -> Study:
    study = small()
    study.diverged = {(4, 8, 128, 0), (4, 8, 128, 1), (4, 8, 128, 2), (8, 8, 128, 1)}
    return study


def families(**sweep) -> Study:
    parameters = [10.0 ** (k / 2) for k in range(6, 15)]
    hidden = {
        "parameters": parameters,
        "depth": {"factor": 4, "exponent": "1/6"},
        "embed_dim": {"factor": 2, "exponent": "1/3"},
    }
    output = {
        "parameters": parameters,
        "depth": {"factor": 2, "exponent": "1/4"},
        "embed_dim": {"factor": 1.5, "exponent": "2/5"},
    }
    return small(
        grid=None,
        families={"hidden": hidden, "output": output},
        seeds=[{"parameters": 2e4, "seeds": 6}, {"seeds": 3}],
        pairs=["finite-mean_ode", "mean_ode-dmft", "finite-dmft"],
        **sweep,
    )


def all_diverged() -> Study:
    study = small(shapes=[[4, 8, 8], [8, 16, 16], [16, 32, 32]], grid=None)
    study.diverged = {(*shape, seed) for shape in study.experiment.shapes for seed in range(3)}
    return study


CASES = {
    "one_depth": one_depth,
    "without_wide": lambda: small(pairs=["finite-mean_ode", "mean_ode-dmft", "finite-dmft"]),
    "limits_only": lambda: small(pairs=["mean_ode-dmft"]),
    "one_shape": lambda: small(grid=None, shapes=[[2, 2, 2]], seeds=1),
    "some_diverged": some_diverged,
    "all_diverged": all_diverged,
}


PAIR_COLOURS = {
    "finite-wide": "#0072b2",
    "mean_ode-dmft": "#d55e00",
    "wide-mean_ode": "#009e73",
    "finite-mean_ode": "#cc79a7",
    "finite-dmft": "#5b3a8c",
}


def drawn(study: Study, name: str, prediction: dict | None = None) -> Picture:
    rates = json.loads(json.dumps(study.rates()))
    return figure(name, study.experiment, study.open_store, study.errors(), rates, prediction)


PREDICTED = {
    "hidden": {"1/L": 0.3, "sqrt(D/(LM))": 0.7, "1/sqrt(D)": 1.9},
    "output": {"1/L": 0.2, "D/(LM)": 0.1, "1/sqrt(LM)": 0.4, "1/sqrt(D)": 0.8},
}


DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]


def prediction(without: str = "", why: str = "") -> dict:
    """Give a prediction with amplitudes of its own, those of other steps far from them."""

    def row(quantity: str, term: str) -> dict:
        known = [50.0] * LAST + [PREDICTED[quantity][term]]
        values = [None] * (LAST + 1) if term == without else known
        return {"amplitude": values, "uncertainty": [0.0] * (LAST + 1)}

    found = {q: {term: row(q, term) for term in terms} for q, terms in PREDICTED.items()}
    depths = {
        term: {
            name: None if values is None else np.outer(np.array(values, float), DEPTHS).tolist()
            for name, values in row("hidden", term).items()
        }
        for term in PREDICTED["hidden"]
        if term != without
    }
    return {
        "step": list(range(LAST + 1)),
        **found,
        "hidden_at": {"s": DEPTHS, **depths},
        "notes": {without: why} if why else {},
    }


@pytest.fixture(scope="module")
def study() -> Study:
    return small()


@pytest.fixture(scope="module")
def full(study) -> dict[str, Picture]:
    return {name: drawn(study, name) for name in FIGURES}


def words(picture: Picture) -> str:
    """Give all that is said in a figure and beside it, but for its caption."""
    inside = [text.get_text() for text in picture.figure.findobj(Text)]
    said = [picture.title, picture.message, *picture.notes, picture.why_empty]
    return " ".join(" ".join([*inside, *said]).replace("$", "").split())


def lines(axes, label: str) -> list[np.ndarray]:
    """Data (2, points) of all lines of a label."""
    return [np.array(line.get_data()) for line in axes.lines if line.get_label() == label]


def rms_by_shape(dataset, variable: str) -> dict[tuple[int, int, int], float]:
    """RMS over good seeds at the last step, less the limits' error, by plain loops."""
    groups: dict[tuple[int, int, int], list[float]] = {}
    for k in range(dataset.sizes["cell"]):
        cell = dataset.isel(cell=k).sel(step=LAST)
        if int(cell["status"]) == 0:
            shape = (int(cell["depth"]), int(cell["width"]), int(cell["embed_dim"]))
            square = float(cell[variable]) ** 2 - float(cell[f"{variable}_stderr"]) ** 2
            groups.setdefault(shape, []).append(square)
    return {shape: float(np.sqrt(np.mean(group))) for shape, group in groups.items()}


# --- every figure, every kind of experiment -------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_drawn_whatever_the_experiment_lacks(case):
    study = CASES[case]()
    for name in FIGURES:
        picture = drawn(study, name)
        assert isinstance(picture.figure, Figure)
        assert picture.figure.axes
        says_all(picture)


@pytest.mark.parametrize("study_of", ["full", "of_families"])
def test_every_figure_is_drawn_of_a_whole_experiment(request, study_of):
    for picture in request.getfixturevalue(study_of).values():
        says_all(picture)


def says_all(picture: Picture) -> None:
    """Hold the contract of every figure: what is said, and a table where anything is drawn."""
    said = picture.description()
    assert list(said) == ["name", "title", "message", "caption", "notes", "status", "why_empty"]
    assert said["name"] in FIGURES
    for key in ("title", "message", "caption"):
        assert said[key].strip(), key
    assert said["message"].endswith(".")
    assert {"hidden", "utputs"} <= set(re.findall("hidden|utputs", said["caption"]))
    assert not re.search(r"\^\(|sqrt|\$", said["caption"])
    assert all(isinstance(note, str) and note for note in said["notes"])
    if said["status"] == "empty":
        assert said["why_empty"]
        assert not len(picture.table)
    else:
        assert re.search(r"\d", said["message"]), "a message has numbers"
        assert len(picture.table)
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in picture.table) or (
            picture.name == "verdicts"
        )
    # No headline inside the picture.
    assert picture.figure.get_suptitle() == ""


def drawn_numbers(fig: Figure) -> list[np.ndarray]:
    """Data, x and y, of all points, lines and bars in the panels of a figure."""
    found = []
    for axes in fig.axes:
        if axes.get_label() == "<colorbar>":
            # The bars of colours.
            continue
        for line in axes.lines:
            found += [np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)]
        for bars in axes.collections:
            if isinstance(bars, LineCollection):
                found += [np.array(segment).ravel() for segment in bars.get_segments()]
    return found


def not_in_the_table(picture: Picture) -> list[float]:
    table = picture.table.select_dtypes("number").to_numpy(float).ravel()
    known = np.sort(table[np.isfinite(table)])
    missing = []
    for values in drawn_numbers(picture.figure):
        for value in values[np.isfinite(values)]:
            k = np.searchsorted(known, value)
            near = known[max(0, k - 1) : k + 1]
            if not np.isclose(near, value, rtol=1e-9, atol=1e-12).any():
                missing.append(float(value))
    return missing


TABLES = ("rates_table", "verdicts")


@pytest.mark.parametrize("study_of", ["full", "of_families"])
def test_every_number_that_is_drawn_stands_in_the_twin_table(request, study_of):
    for name, picture in request.getfixturevalue(study_of).items():
        if name not in TABLES and not picture.why_empty:
            assert drawn_numbers(picture.figure), name
            assert not_in_the_table(picture) == [], name


def test_a_twin_table_that_lacks_a_number_is_seen(full):
    for name in ("error_vs_shape", "distance_over_steps", "kernels"):
        picture = full[name]
        table = picture.table.copy()
        column = (
            "kernel" if name == "kernels" else table.columns[table.columns.str.endswith("_rms")][0]
        )
        table[column] *= 1.01
        broken = Picture("x", "", "", "", picture.figure, table=table)
        assert not_in_the_table(broken), name


def test_an_unknown_name_is_refused(study):
    with pytest.raises(ValueError, match="error_vs_shape"):
        drawn(study, "pie_chart")


@pytest.fixture(scope="module")
def of_families() -> dict[str, Picture]:
    return {name: drawn(families(), name) for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("study_of", ["full", "of_families"])
def test_no_words_lie_on_other_words(request, study_of, name):
    no_words_lie_on_other_words(request.getfixturevalue(study_of)[name].figure)


def no_words_lie_on_other_words(fig: Figure) -> None:
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    boxes = [
        (text.get_text(), text.get_window_extent(renderer).padded(-1))
        for text in visible_texts(fig)
    ]
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} on {two!r}"
    inside = fig.bbox.padded(1)
    for text, box in boxes:
        assert inside.containsx(box.x0), text
        assert inside.containsx(box.x1), text
        assert inside.containsy(box.y0), text
        assert inside.containsy(box.y1), text


def visible_texts(fig: Figure) -> list[Text]:
    tick_labels = {
        label
        for axes in fig.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.majorTicks, *axis.minorTicks]
        for label in (tick.label1, tick.label2)
    }
    shown = {
        tick.label1
        for axes in fig.axes
        if axes.axison
        for axis in (axes.xaxis, axes.yaxis)
        if axis.get_visible()
        for tick in axis._update_ticks()
        if tick.label1.get_visible()
    }
    return [
        text
        for text in fig.findobj(Text)
        if text.get_text().strip()
        and text.get_visible()
        and (text in shown or text not in tick_labels)
    ]


def test_the_check_for_overlap_sees_an_overlap():
    fig = new_figure(0.8)
    axes = fig.add_subplot()
    axes.text(0.5, 0.5, "one word")
    axes.text(0.51, 0.5, "another")
    with pytest.raises(AssertionError, match="on"):
        no_words_lie_on_other_words(fig)


def test_the_files_of_a_figure_are_the_same_every_time(study, tmp_path):
    assert FORMS == FIGURE_FORMS
    first, second = drawn(study, "trajectories"), drawn(study, "trajectories")
    for form in FIGURE_FORMS:
        one = first.save(tmp_path / f"a.{form}").read_bytes()
        other = second.save(tmp_path / "deeper" / f"b.{form}").read_bytes()
        assert one == other, form
        assert len(one) > 700
    svg = (tmp_path / "a.svg").read_bytes()
    assert b"<text" in svg
    assert b"<dc:date>" not in svg
    for form in PICTURES:
        assert b"CreationDate" not in (tmp_path / f"a.{form}").read_bytes()
    said = json.loads((tmp_path / "a.json").read_text())
    assert said == first.description()
    with (tmp_path / "a.csv").open() as file:
        lines_of_file = file.readlines()
    assert len(lines_of_file) == len(first.table) + 1
    assert lines_of_file[0].startswith("series,depth,width,embed_dim,gradient_step,seed,")
    names = ["a.csv", "a.json", "a.pdf", "a.png", "a.svg", "deeper"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(ValueError, match="png"):
        first.save(tmp_path / "a.gif")


def test_pictures_carry_title_message_and_origin(study, tmp_path):
    picture = drawn(study, "loss_curves")
    png = picture.save(tmp_path / "a.png", {"Source": "an origin"}).read_bytes()
    assert picture.message.encode("latin-1", "ignore")[:40] in png or b"Description" in png
    assert b"an origin" in png
    svg = picture.save(tmp_path / "a.svg", {"Source": "an origin"}).read_text()
    assert picture.title in svg
    assert "an origin" in svg
    pdf = picture.save(tmp_path / "a.pdf", {"Keywords": "an origin"}).read_bytes()
    assert b"an origin" in pdf


# --- style ----------------------------------------------------------------------------------------


def test_a_style_sheet_changes_fonts_sizes_and_colours(study, tmp_path):
    sheet = tmp_path / "own.mplstyle"
    sheet.write_text(
        "figure.figsize: 5, 2  # inches\nfont.size: 11\nimage.cmap: plasma\n"
        'text.color: "#aa0000"\n'
        "axes.prop_cycle: cycler('color', ['112233', '445566', '778899', 'aabbcc', 'ddeeff'])\n"
    )
    plain = drawn(study, "three_terms").figure
    with style.sheet(sheet):
        own = drawn(study, "three_terms").figure
        limit = drawn(study, "loss_curves").figure.axes[0].lines[-1]
    assert own.get_figwidth() == pytest.approx(5 / 7.2 * plain.get_figwidth())
    assert own.axes[0]._left_title.get_color() == "#112233"
    assert plain.axes[0]._left_title.get_color() == "#0072b2"
    assert to_hex(limit.get_color()) == "#aa0000"
    assert drawn(study, "three_terms").figure.axes[0]._left_title.get_color() == "#0072b2"


@pytest.mark.parametrize(
    ("line", "words_of_it"),
    [
        ("font.sise: 8", "line 2: 'font.sise' is not a setting"),
        ("just words", "line 2: 'just words' is not a setting"),
        ("font.size: large", "line 2"),
        ("svg.hashsalt: mine", "is fixed"),
        ("backend: qtagg", "is fixed"),
    ],
)
def test_a_bad_style_sheet_is_refused_in_one_line(tmp_path, line, words_of_it):
    sheet = tmp_path / "own.mplstyle"
    sheet.write_text(f"font.size: 9\n{line}\n")
    with pytest.raises(style.StyleError, match=re.escape(words_of_it)) as raised:
        style.read_sheet(sheet)
    assert "\n" not in str(raised.value)
    with pytest.raises(style.StyleError, match="cannot be read"):
        style.read_sheet(tmp_path / "none.mplstyle")


def test_networks_are_told_apart_without_colour(full):
    for name in ("loss_curves", "distance_over_steps", "kernels"):
        series = [
            line
            for line in full[name].figure.axes[0].lines
            if line.get_marker() not in ("", "None", None)
        ]
        looks = {(line.get_marker(), to_hex(line.get_color())) for line in series}
        assert len({marker for marker, _ in looks}) == len(looks) > 1
        greys = [np.dot(mpl.colors.to_rgb(c), (0.299, 0.587, 0.114)) for _, c in looks]
        assert np.diff(np.sort(greys)).min() > 0.08


# --- what was missing once ------------------------------------------------------------------------


def test_every_swept_value_is_drawn_and_stands_on_its_bar():
    widths = [8, 16, 32, 64, 128, 256]
    study = small(grid={"depth": [4, 8], "width": widths, "embed_dim": [8, 32]})
    picture = drawn(study, "error_vs_shape")
    bars = [
        axes for axes in picture.figure.axes if "M" in axes.get_xlabel() and axes.get_xticklabels()
    ]
    shown = [[text.get_text() for text in axes.get_xticklabels()] for axes in picture.figure.axes]
    assert list(map(str, widths)) in shown
    assert bars
    own = picture.table[(picture.table["panel"] == "embed_dim")]
    assert set(own["width"].dropna().astype(int)) >= set(widths)


def test_values_for_which_there_is_no_room_are_named():
    widths = [2**k for k in range(3, 15)]
    study = small(grid={"depth": [4], "width": widths, "embed_dim": [8, 32]})
    picture = drawn(study, "error_vs_shape")
    (note,) = (note for note in picture.notes if "no room" in note)
    drawn_widths = set(picture.table[picture.table["panel"] == "embed_dim"]["width"].dropna())
    named = {int(value) for value in note.split("M = ")[1].rstrip(".").split(", ")}
    assert named | drawn_widths == set(widths)
    assert not named & drawn_widths


def test_bars_of_different_lines_do_not_cover_one_another(full):
    axes = full["error_vs_shape"].figure.axes[0]
    places = []
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            first = bars.get_segments()[0][0]
            places.append(bars.get_transform().transform(first)[0])
    assert len(places) == 3
    assert np.diff(np.sort(places)).min() > 1.0


def test_a_band_of_noise_is_drawn_whole_or_not_at_all():
    axes = new_figure(1.0).add_subplot()
    x = np.arange(3.0)
    assert not panels.noise_band(axes, x, np.array([1e-3, 1e-5, 1e-2]), 1e-4)
    assert not axes.collections
    assert panels.noise_band(axes, x, np.array([1e-3, 2e-4, 1e-2]), 1e-4)
    assert axes.collections


@pytest.mark.parametrize(
    ("low", "high", "least"), [(0.2, 0.9, 3), (0.03, 0.4, 3), (0.011, 0.09, 3), (0.31, 0.43, 2)]
)
def test_short_logarithmic_axes_have_labels(low, high, least):
    fig = new_figure(1.0)
    axes = fig.add_subplot()
    axes.set_ylim(low, high)
    panels.log_axis(axes, "y")
    fig.draw_without_rendering()
    texts = [
        tick.label1.get_text()
        for tick in axes.yaxis._update_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    assert len(texts) >= least


def test_best_shapes_have_intervals_and_those_at_the_edge_are_shown():
    study = small()
    rates = json.loads(json.dumps(study.rates()))
    budget = rates["pairs"]["finite-dmft"]["hidden"]["14"]["fixed_budget"]
    for point in budget["points"]:
        point["error_interval"] = [0.9 * point["error"], 1.2 * point["error"]]
    first = budget["points"].pop(0)
    budget["edges"] = [{**first, "edge": "smallest D"}]
    picture = figure(
        "error_vs_parameters", study.experiment, study.open_store, study.errors(), rates
    )
    axes = picture.figure.axes[0]
    ((P, error),) = lines(axes, "best, at the edge of $D$")
    assert (P[0], error[0]) == (first["parameters"], first["error"])
    bars = [s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    ends = {tuple(segment[:, 1]) for segment in bars}
    assert tuple(first["error_interval"]) in ends
    assert {tuple(point["error_interval"]) for point in budget["points"]} <= ends
    said = f"For 1 of {1 + len(budget['points'])} values of P the shape of least hidden error has"
    assert said in words(picture)
    edge = picture.table[picture.table["series"] == "best shape, at an edge"]
    assert edge["edge"].tolist() == ["smallest D"]


# --- distances over depth and steps, kernels, accuracy --------------------------------------------


def test_distances_over_depth_are_measured_and_predicted(study):
    picture = drawn(study, "distance_over_depth", prediction())
    pairs = ("finite-wide", "wide-mean_ode", "mean_ode-dmft", "finite-dmft")
    terms_of_pair = dict(zip(pairs, ("W", "L", "D", "LWD"), strict=True))
    table = picture.table
    assert list(dict.fromkeys(table["pair"])) == list(pairs)
    for pair, axes in zip(pairs, picture.figure.axes, strict=True):
        own = table[(table["pair"] == pair) & (table["series"] == "measured")]
        shapes = own[["depth", "width", "embed_dim"]].drop_duplicates().fillna(0).astype(int)
        for shape in shapes.itertuples(index=False):
            errors = study.errors()[pair].sel(step=LAST)
            mine = np.logical_and.reduce(
                [errors[n].values == v for n, v in zip(shapes.columns, shape, strict=True)]
            )
            values = errors["hidden_rms"].values[mine]
            rows = own[(own[list(shapes.columns)].fillna(0) == list(shape)).all(axis=1)]
            np.testing.assert_allclose(
                rows["distance_rms"], np.sqrt((values**2).mean()) * rows["depth_s"]
            )
            np.testing.assert_allclose(rows["largest_seed"], values.max() * rows["depth_s"])
            assert rows["depth_s"].min() > 0
        curves = lines(axes, "_prediction")
        assert len(curves) == len(shapes)
        for (s, distance), shape in zip(curves, shapes.itertuples(index=False), strict=True):
            sizes = [size or 1 for size in shape]
            wanted = predicted("hidden", terms_of_pair[pair], *sizes)
            np.testing.assert_allclose(distance, wanted * s)
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(distance, 1.01 * wanted * s)


def test_without_distances_over_depth_the_figure_says_so(study):
    errors = {pair: dataset.drop_vars("hidden_rms_at") for pair, dataset in study.errors().items()}
    picture = figure("distance_over_depth", study.experiment, study.open_store, errors, {})
    assert picture.description()["status"] == "empty"
    assert picture.why_empty == "There are no distances of hidden states over depth."
    fig = drawn(study, "distance_over_depth")
    assert "No predicted curve over depth of finite network – infinite width" in words(fig)


def test_distances_over_steps_are_rms_over_seeds_without_the_limits_error(study):
    picture = drawn(study, "distance_over_steps", prediction())
    table = picture.table
    for quantity in ("hidden", "output"):
        own = table[
            (table["pair"] == "finite-dmft")
            & (table["observable"] == quantity)
            & (table["series"] == "measured")
        ]
        last = own[own["gradient_step"] == LAST]
        wanted = rms_by_shape(study.errors()["finite-dmft"], f"{quantity}_rms")
        assert len(last) == 3
        for row in last.itertuples():
            shape = (int(row.depth), int(row.width), int(row.embed_dim))
            assert row.distance_rms == pytest.approx(wanted[shape])
            assert row.smallest_seed <= row.distance_rms <= row.largest_seed
        curves = table[
            (table["pair"] == "finite-dmft")
            & (table["observable"] == quantity)
            & (table["series"] == "predicted")
            & (table["gradient_step"] == LAST)
        ]
        law = "LWD" if quantity == "hidden" else "LABD"
        for row in curves.itertuples():
            wanted_at = predicted(quantity, law, row.depth, row.width, row.embed_dim)
            assert row.distance_rms == pytest.approx(wanted_at)


def test_kernels_are_means_over_coordinates_and_quadratic_forms_of_the_limit():
    study = Study(
        synthetic.experiment(
            model={"init_std": {"embedding": 0.5, "unembedding": 2.0}},
            sweep={"shapes": [[8, 16, 16], [32, 128, 512]], "seeds": 2},
        )
    )
    table = drawn(study, "kernels").table
    dmft, gram = study.dmft(), np.diag([0.25, 0.25, 4.0, 4.0])
    for field in ("hidden", "backward"):
        c = dmft[f"{field}_coef"].values
        own = table[(table["field"] == field) & (table["series"] == "DMFT limit")]
        for step, sample in ((LAST, 0), (LAST, 1), (0, 0)):
            rows = own[
                (own["gradient_step"] == step)
                & (own["gradient_step_other"] == LAST)
                & (own["sample_other"] == sample)
            ]
            for s, node in ((0.0, 0), (0.5, 2), (1.0, 4)):
                (value,) = rows[np.isclose(rows["depth_s"], s)]["kernel"]
                wanted = c[step, node, 0] @ gram @ c[LAST, node, sample]
                assert value == pytest.approx(wanted)
                assert value != pytest.approx(c[step, node, 0] @ c[LAST, node, sample])
    values = study.finite(32, 128, 512)["hidden"].values.astype(float)
    rows = table[
        (table["series"] == "network")
        & (table["width"] == 128)
        & (table["field"] == "hidden")
        & (table["gradient_step"] == 0)
    ]
    per_seed = (values[:, 0, :, 0] * values[:, LAST, :, 0]).mean(axis=-1)
    np.testing.assert_allclose(rows["kernel"], per_seed.mean(axis=0))
    np.testing.assert_allclose(rows["smallest_seed"], per_seed.min(axis=0))
    ends = table[table["series"].str.contains("all pairs") & (table["field"] == "backward")]
    ends = ends[ends["width"] == 128]
    backward = study.finite(32, 128, 512)["backward"].values[:, LAST, 0].astype(float)
    wanted = [
        (backward[:, i] * backward[:, j]).mean()
        for i in range(min(4, backward.shape[1]))
        for j in range(i, min(4, backward.shape[1]))
    ]
    np.testing.assert_allclose(ends["kernel"], wanted)


class WithClasses(Study):
    """Targets that are classes, and some samples that nothing was trained on."""

    tests = 1

    def problem(self):
        problem = super().problem()
        count, targets = problem["y"].shape
        y = np.eye(targets)[np.arange(count) % targets]
        is_test = np.arange(count) >= count - self.tests
        problem["y"] = (("sample", "target"), y)
        return problem.assign_coords(is_test=("sample", is_test)) if self.tests else problem


@pytest.mark.parametrize("tests", [0, 1])
def test_accuracy_counts_right_answers_of_training_and_test_samples_apart(study, tests):
    classes = WithClasses(study.experiment)
    classes.tests = tests
    picture = drawn(classes, "accuracy")
    parts = ["training", "test"] if tests else ["training"]
    assert list(dict.fromkeys(picture.table["part"])) == parts
    assert len(picture.figure.axes) == len(parts)
    y = classes.problem()["y"].values.argmax(axis=-1)
    rows = {"training": slice(0, len(y) - tests), "test": slice(len(y) - tests, None)}
    for part in parts:
        own = picture.table[picture.table["part"] == part]
        limit = own[own["series"] == "DMFT limit"]
        right = study.dmft()["output"].values.argmax(axis=-1) == y
        np.testing.assert_allclose(limit["accuracy"], right[:, rows[part]].mean(axis=-1))
        network = own[(own["series"] == "network") & (own["width"] == 8)]
        right = study.finite(4, 8, 8)["output"].values.argmax(axis=-1) == y
        share = right[:, :, rows[part]].mean(axis=-1)
        np.testing.assert_allclose(network["accuracy"], share.mean(axis=0))
        np.testing.assert_allclose(network["smallest_seed"], share.min(axis=0))


def test_accuracy_needs_classes(study):
    picture = drawn(study, "accuracy")
    assert picture.why_empty == "The targets of this experiment are not classes."


def test_figures_exist_where_their_data_may(study):
    assert "accuracy" not in figure_names(study.experiment)
    assert "frontier" not in figure_names(study.experiment)
    assert "frontier" in figure_names(families().experiment)
    digits = synthetic.experiment(problem={"data": {"kind": "digits", "samples": 8, "classes": 2}})
    assert "accuracy" in figure_names(digits)


def test_matplotlib_is_left_as_it_was(study):
    before = dict(mpl.rcParams)
    drawn(study, "loss_curves")
    assert dict(mpl.rcParams) == before


# --- error against shape --------------------------------------------------------------------------


def test_error_vs_shape_shows_the_rms_over_seeds_and_the_fitted_law(study, full):
    fig = full["error_vs_shape"]
    panels = fig.figure.axes[:6]
    assert [axes.get_xlabel() for axes in panels[3:]] == [
        "embedding dimension $D$",
        "depth $L$",
        "hidden width $M$",
    ]
    errors = study.errors()["finite-dmft"]
    hidden, output = (rms_by_shape(errors, name) for name in ("hidden_rms", "output_rms"))
    for row, (quantity, expected) in enumerate((("hidden", hidden), ("output", output))):
        places = {
            0: lambda x, colour: (16, colour, x),
            1: lambda x, colour: (x, 128, colour),
            2: lambda x, colour: (16, x, colour),
        }
        for column, place in places.items():
            axes = panels[3 * row + column]
            points = [np.hstack(pair) for pair in zip(*both(axes), strict=True)]
            colours = (8, 32, 128)
            assert len(points) == len(colours)
            for colour, (x, y) in zip(colours, points, strict=True):
                order = np.argsort(x)
                sizes = [int(value) for value in x[order]]
                assert sizes == ([4, 8, 16] if column == 1 else [8, 32, 128])
                wanted = [expected[place(value, colour)] for value in sizes]
                np.testing.assert_allclose(y[order], wanted)
            for colour, (x, y) in zip(colours, lines(axes, "_fit"), strict=True):
                shapes = [place(value, colour) for value in x]
                wanted = [synthetic.law("finite-dmft", quantity, *shape) for shape in shapes]
                np.testing.assert_allclose(y, wanted)


def both(axes):
    return lines(axes, "_resolved"), lines(axes, "_unresolved")


def test_error_vs_shape_leaves_out_a_size_that_does_not_vary():
    picture = drawn(one_depth(), "error_vs_shape")
    assert "No panel for L: all networks have L = 50." in picture.notes
    shown = [axes for axes in picture.figure.axes if axes.get_label() != "<colorbar>"]
    assert len(shown) == 4
    assert all(axes.lines for axes in shown)
    labels = [axes.get_xlabel() for axes in shown[2:]]
    assert labels == ["embedding dimension $D$", "hidden width $M$"]


def test_error_vs_shape_says_that_no_size_varies_alone():
    shapes = [[4, 4, 4], [8, 8, 8], [16, 16, 16]]
    picture = drawn(small(grid=None, shapes=shapes), "error_vs_shape")
    assert picture.description()["status"] == "empty"
    for symbol in "DLM":
        assert f"no two shapes of this experiment differ in {symbol} alone" in picture.why_empty


def test_error_vs_shape_falls_back_to_the_next_limit():
    study = small(pairs=["finite-wide"])
    fig = drawn(study, "error_vs_shape")
    assert "finite network – infinite width" in words(fig)
    assert fig.figure.axes[0].lines


# --- error against parameters ---------------------------------------------------------------------


def test_error_vs_parameters_shows_all_shapes_the_best_and_both_slopes(study, full):
    fig = full["error_vs_parameters"]
    rates, errors = study.rates(), study.errors()["finite-dmft"]
    for axes, quantity, power in zip(fig.figure.axes, ("hidden", "output"), (6, 5), strict=True):
        expected = rms_by_shape(errors, f"{quantity}_rms")
        ((P, error),) = lines(axes, "all shapes")
        wanted = sorted((Shape(*shape).parameters, value) for shape, value in expected.items())
        np.testing.assert_allclose(sorted(zip(P, error, strict=True)), wanted)
        budget = rates["pairs"]["finite-dmft"][quantity]["14"]["fixed_budget"]
        ((P, error),) = lines(axes, "best shape for its $P$")
        assert P.tolist() == [point["parameters"] for point in budget["points"]]
        assert error.tolist() == [point["error"] for point in budget["points"]]
        labels = {line.get_label(): np.log(line.get_data()) for line in axes.lines}
        theory = labels[f"theory, exponent −1/{power}"]
        (fit,) = (data for label, data in labels.items() if label.startswith("fit"))
        for line, slope in ((theory, -1 / power), (fit, budget["exponent"])):
            (x0, x1), (y0, y1) = line
            assert (y1 - y0) / (x1 - x0) == pytest.approx(slope)
            assert x0 < np.log(P.min()) < np.log(P.max()) < x1
        low, high = budget["exponent_interval"]
        assert f"[{low:.2f}, {high:.2f}]".replace("-", "−") in words(fig)


# --- the three terms ------------------------------------------------------------------------------

TERMS = (("finite-wide", 0.5), ("wide-mean_ode", -1.0), ("mean_ode-dmft", -0.5))


def test_three_terms_shows_points_fits_and_theory(study, full):
    fig = full["three_terms"]
    rates = study.rates()["pairs"]
    for axes, (pair, slope) in zip(fig.figure.axes[:3], TERMS, strict=True):
        expected = rms_by_shape(study.errors()[pair], "hidden_rms")
        x, y = np.hstack(
            [np.hstack(lines(axes, "_resolved")), np.hstack(lines(axes, "_unresolved"))]
        )
        at = {
            "finite-wide": lambda L, M, D: D / (L * M),
            "wide-mean_ode": lambda L, M, D: L,
            "mean_ode-dmft": lambda L, M, D: D,
        }[pair]
        wanted = sorted((at(*shape), value) for shape, value in expected.items())
        np.testing.assert_allclose(sorted(zip(x, y, strict=True)), wanted)
        fit = rates[pair]["hidden"]["14"]
        for label, power, amplitude in (
            ("_fit", fit["exponent"], fit["amplitude"]),
            ("_theory", abs(slope), fit["amplitude_at_theory"]),
        ):
            (((x0, x1), (y0, y1)),) = lines(axes, label)
            measured = np.log(y1 / y0) / np.log(x1 / x0)
            assert measured == pytest.approx(np.sign(slope) * power)
            variable = x0 if slope > 0 else 1 / x0
            assert y0 == pytest.approx(amplitude * variable**power)
        low, high = fit["exponent_interval"]
        assert f"exponent {fit['exponent']:.2f} [{low:.2f}, {high:.2f}]" in words(fig)
        theory = {0.5: "1/2", 1.0: "1"}[abs(slope)]
        assert f"theory {theory}, in {fit['variable']}" in words(fig)


def test_a_key_names_only_what_is_drawn(study):
    cells = by_shape(study.errors(), "finite-wide", "output", LAST)
    terms = PREDICTED["output"]
    of_pair = {name: terms[name] for name in ("D/(LM)", "1/sqrt(LM)")}
    for found, keys in (
        (Known({}, {}, tuple(of_pair)), 0),
        (Known({"1/sqrt(LM)": 0.4}, {"1/sqrt(LM)": 0.0}, ("D/(LM)",)), 0),
        (Known(of_pair, dict.fromkeys(of_pair, 0.0), ()), 2),
    ):
        axes = Figure().add_subplot()
        what = causes._What(causes._TERMS[0], "output", LAST, found)
        causes._sum_lines(axes, cells, None, what, Twin())
        legend = axes.get_legend()
        assert len(legend.get_texts() if legend else []) == len(axes.lines) == keys


def test_three_terms_shows_what_is_not_resolved_hollow_above_the_noise(study):
    errors = study.errors()
    pair = errors["wide-mean_ode"]
    level = float(pair["hidden_rms"].sel(step=LAST).median()) / 10
    errors["wide-mean_ode"] = pair.assign(
        hidden_rms_stderr=pair["hidden_rms_stderr"].copy(
            data=np.full(pair["hidden_rms"].shape, level)
        )
    )
    fig = figure("three_terms", study.experiment, study.open_store, errors, study.rates())
    axes = fig.figure.axes[1]
    resolved, unresolved = (np.hstack(group) for group in both(axes))
    assert resolved.shape[1] > 0
    assert unresolved.shape[1] > 0
    # Without the limits' error, which is held against what was measured.
    assert (np.hypot(resolved[1], level) >= 10 * level).all()
    assert (np.hypot(unresolved[1], level) < 10 * level).all()
    hollow = [line for line in axes.lines if line.get_label() == "_unresolved"]
    assert {line.get_markerfacecolor() for line in hollow} == {"white"}
    (band,) = axes.collections[-1:]
    assert band.get_paths()[0].get_extents().y1 == pytest.approx(level)
    assert axes.get_ylim()[0] < level


def test_three_terms_of_an_exact_limit_say_so(study):
    errors = {
        pair: dataset.assign(
            hidden_rms_stderr=0 * dataset["hidden_rms_stderr"],
            output_rms_stderr=0 * dataset["output_rms_stderr"],
        )
        for pair, dataset in study.errors().items()
    }
    fig = figure("three_terms", study.experiment, study.open_store, errors, study.rates())
    assert words(fig).count("limits without quadrature error") == 6


def test_a_pair_that_was_not_asked_for_is_named():
    text = words(drawn(small(pairs=["finite-mean_ode"]), "three_terms"))
    for pair, _ in TERMS:
        assert f"This experiment does not compare {pair}." in text
    assert "exponent" not in text


def test_a_fit_without_enough_values_gives_its_reason():
    text = words(drawn(one_depth(), "three_terms"))
    assert "too few distinct values of 1/L: 1 of the 3 needed" in text


# --- divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["error_vs_shape", "error_vs_parameters", "three_terms"])
def test_diverged_cells_are_counted_in_words(name, full):
    assert "77 of 81 cells used, 4 diverged" in words(drawn(some_diverged(), name))
    assert "diverged" not in words(full[name])


def test_diverged_cells_are_neither_drawn_nor_averaged_in():
    study = some_diverged()
    cells = by_shape(study.errors(), "finite-dmft", "hidden", LAST)
    shapes = [tuple(shape) for shape in cells.sizes.tolist()]
    assert (4, 8, 128) not in shapes
    assert (8, 8, 128) in shapes
    assert np.isfinite(cells.error).all()
    assert (cells.counts["total"], cells.counts["diverged"], len(cells)) == (81, 4, 26)
    good = study.errors()["finite-dmft"].sel(step=LAST)
    mine = (good["depth"] == 8) & (good["width"] == 8) & (good["embed_dim"] == 128)
    values = good["hidden_rms"].values[mine.values]
    assert np.isnan(values).sum() == 1
    error = cells.error[shapes.index((8, 8, 128))]
    assert error == pytest.approx(np.sqrt(np.nanmean(values**2)), rel=1e-3)


def test_a_study_in_which_everything_diverged_says_so():
    study = all_diverged()
    for name in ("error_vs_shape", "error_vs_parameters", "three_terms"):
        assert "All 9 cells diverged: there is nothing to draw." in words(drawn(study, name))
    for name in ("trajectories", "histograms"):
        assert "All 9 networks diverged: there is nothing to draw." in words(drawn(study, name))
    fig = drawn(study, "loss_curves")
    assert "No finite network of this experiment was trained to the end." in words(fig)
    assert [line.get_label() for line in fig.figure.axes[0].lines] == ["DMFT limit"]


def test_networks_that_diverged_are_replaced_by_their_neighbours():
    study = small()
    study.diverged = {(16, 128, 128, seed) for seed in range(3)} | {(4, 8, 8, 0)}
    fig = drawn(study, "loss_curves")
    labels = [line.get_label() for line in fig.figure.axes[0].lines]
    assert "L = 16, M = 128, D = 128" not in labels
    assert "L = 4, M = 8, D = 8" in labels
    assert "networks examined diverged and are left out." in words(fig)
    for line in fig.figure.axes[0].lines:
        assert np.isfinite(line.get_ydata()).all()


# --- networks beside the limit --------------------------------------------------------------------


def test_loss_curves_are_the_losses(study, full):
    left, right = full["loss_curves"].figure.axes
    limit = study.dmft()
    by_label = {line.get_label(): np.array(line.get_data()) for line in left.lines}
    np.testing.assert_array_equal(by_label.pop("DMFT limit")[1], limit["loss"].values)
    assert next(iter(by_label)) == "L = 4, M = 8, D = 8"
    assert list(by_label)[-1] == "L = 16, M = 128, D = 128"
    for (label, (step, loss)), line in zip(by_label.items(), right.lines, strict=True):
        sizes = [int(part.split(" = ")[1]) for part in label.split(", ")]
        values = study.finite(*sizes)["loss"].values
        assert step.tolist() == list(range(15))
        np.testing.assert_allclose(loss, values.mean(axis=0))
        distance = np.sqrt(((values - limit["loss"].values) ** 2).mean(axis=0))
        np.testing.assert_allclose(line.get_ydata(), distance)


def test_loss_curves_of_few_saved_steps_take_the_limit_at_the_same_steps():
    study = Study(
        synthetic.experiment(
            save={"steps": [5, 14]},
            sweep={"shapes": [[4, 8, 8], [8, 16, 16]], "seeds": 2},
        )
    )
    _, right = drawn(study, "loss_curves").figure.axes
    values = study.finite(4, 8, 8)["loss"].values
    limit = study.dmft()["loss"].values[[5, 14]]
    x, y = right.lines[0].get_data()
    assert x.tolist() == [5, 14]
    np.testing.assert_allclose(y, np.sqrt(((values - limit) ** 2).mean(axis=0)))


def test_trajectories_are_the_stored_fields_and_the_limit_of_the_same_rows(study, full):
    panels = full["trajectories"].figure.axes
    assert len(panels) == 3
    assert panels[0].get_title(loc="left").replace("$", "") == "L = 4, M = 8, D = 8"
    assert panels[2].get_title(loc="left").replace("$", "") == "L = 16, M = 128, D = 128"
    rows = embedding_rows(make_problem(study.experiment), study.experiment.seed, 0, 8)
    (note,) = (text for text in words(full["trajectories"]).split("Seed 0")[1:])
    shown = [int(d) for d in note.split("coordinates ")[1].split(".")[0].split(", ")]
    limit = study.dmft()["hidden_coef"].values[LAST, :, 0] @ rows[shown].T
    for axes, sizes in ((panels[0], (4, 8, 8)), (panels[2], (16, 128, 128))):
        stored = study.finite(*sizes)["hidden"].values[0, LAST, :, 0][:, shown]
        finite = np.array([y for _, y in lines(axes, "_finite")]).T
        np.testing.assert_array_equal(finite, stored)
        curves = np.array([y for _, y in lines(axes, "_limit")]).T
        # The ends and the middle are nodes of the made-up limit.
        np.testing.assert_allclose(curves[[0, 50, 100]], limit[[0, 2, 4]], atol=1e-12)


def test_trajectories_use_one_seed_that_no_network_lost():
    study = small()
    study.diverged = {(4, 8, 8, 0)}
    fig = drawn(study, "trajectories")
    assert "Seed 1, sample 0" in words(fig)
    ends = [np.array([y[-1] for _, y in lines(axes, "_limit")]) for axes in fig.figure.axes]
    np.testing.assert_allclose(ends[0], ends[2])


class WithTokens(Study):
    """Of three tokens the last one is what there would be without tokens."""

    def open_store(self, kind, cell):
        dataset = super().open_store(kind, cell)
        copies = []
        for factor in (3.0, 2.0, 1.0):
            scaled = dataset.copy()
            for name, variable in dataset.data_vars.items():
                if "sample" in variable.dims:
                    scaled[name] = factor * variable
            copies.append(scaled)
        sampled = [name for name, v in dataset.data_vars.items() if "sample" in v.dims]
        joined = xr.concat([copy[sampled] for copy in copies], dim="token")
        order = [
            *(d for d in ("seed", "replicate", "step", "depth_point", "node", "sample", "token")),
            *("coordinate", "embedding_direction", "target", "input"),
        ]
        joined = joined.transpose(*(d for d in order if d in joined.dims))
        return dataset.drop_vars(sampled).merge(joined)


def test_of_tokens_the_last_one_is_drawn_and_named(study, full):
    tokens = WithTokens(study.experiment)
    fig = drawn(tokens, "trajectories")
    assert "of token 2. The limit is evaluated" in words(fig)
    assert "token" not in words(full["trajectories"])
    for axes, plain in zip(fig.figure.axes, full["trajectories"].figure.axes, strict=True):
        for label in ("_finite", "_limit"):
            for line, other in zip(lines(axes, label), lines(plain, label), strict=True):
                np.testing.assert_allclose(line, other, rtol=1e-6)
    fig = drawn(tokens, "histograms")
    assert "All coordinates of token 2 of the networks" in words(fig)
    # Ticks have no text before they are drawn, and those of `full` may have been.
    plain = drawn(study, "histograms")
    assert words(fig).replace(" of token 2", "") == words(plain)


def test_the_law_of_the_limit_is_called_gaussian_only_where_it_is(full):
    assert "DMFT limit, Gaussian" in words(full["histograms"])
    study = Study(
        synthetic.experiment(
            model={"initial_law": "uniform"},
            sweep={"shapes": [[8, 16, 16]], "seeds": 2, "pairs": ["finite-dmft"]},
        )
    )
    text = words(drawn(study, "histograms"))
    assert "DMFT limit, Gaussian" not in text
    assert "Gaussian of the limit's variance" in text


def test_histograms_count_coordinates_against_the_law_of_the_limit():
    study = Study(
        synthetic.experiment(
            model={"init_std": {"embedding": 0.5, "unembedding": 2.0}},
            sweep={"shapes": [[8, 16, 16], [32, 128, 512]], "seeds": 2},
        )
    )
    fig = drawn(study, "histograms")
    assert len(fig.figure.axes) == 2 * 3
    coefficients = study.dmft()["hidden_coef"].values[LAST, -1]
    gram = np.diag([0.25, 0.25, 4.0, 4.0])
    for row, sizes in enumerate(((8, 16, 16), (32, 128, 512))):
        hidden = study.finite(*sizes)["hidden"].values[:, LAST, -1].astype(float)
        for sample in range(3):
            axes = fig.figure.axes[3 * row + sample]
            std = np.sqrt(coefficients[sample] @ gram @ coefficients[sample])
            (line,) = axes.lines
            x, density = line.get_data()
            wanted = np.exp(-0.5 * (x / std) ** 2) / np.sqrt(2 * np.pi * std**2)
            np.testing.assert_allclose(density, wanted)
            (stairs,) = axes.patches
            values, edges, _ = stairs.get_data()
            coordinates = hidden[:, sample].ravel()
            counts, _ = np.histogram(coordinates, edges)
            np.testing.assert_allclose(values * np.diff(edges) * len(coordinates), counts)
            text = words(fig)
            assert f"n = {len(coordinates)}" in text
            assert rf"\sigma = {style.number(np.sqrt((coordinates**2).mean()))}" in text
            assert f"limit {style.number(std)}" in text


def test_only_what_is_drawn_is_opened():
    study = Study(synthetic.experiment())
    for name, most in (("loss_curves", 4), ("trajectories", 3), ("histograms", 3)):
        study.opened.clear()
        drawn(study, name)
        finite = [cell for kind, cell in study.opened if kind == "finite"]
        assert 1 < len(finite) <= most
        assert {kind for kind, _ in study.opened} <= {"finite", "dmft", "problem"}
    study.opened.clear()
    drawn(study, "three_terms")
    assert not study.opened


def test_stores_that_cannot_be_opened_are_named_and_replaced(study):
    def open_store(kind, cell):
        if cell == {"depth": 16, "width": 128, "embed_dim": 128}:
            raise StoreError("no such store")
        return study.open_store(kind, cell)

    fig = figure("loss_curves", study.experiment, open_store, study.errors(), study.rates())
    assert "Could not be opened: L16_M128_D128." in words(fig)
    assert len(fig.figure.axes[0].lines) > 2


def test_without_finite_networks_or_limits_nothing_is_invented(study):
    def nothing(kind, cell):
        raise StoreError("no such store")

    for name, sentence in (
        ("loss_curves", "No network was trained to the end, and no limit was solved."),
        ("trajectories", "The DMFT limit of this experiment was not solved."),
        ("histograms", "The DMFT limit of this experiment was not solved."),
    ):
        fig = figure(name, study.experiment, nothing, {}, {})
        assert sentence in words(fig)
        assert not any(axes.lines for axes in fig.figure.axes)
    for name in ("error_vs_shape", "error_vs_parameters", "three_terms", "rates_table"):
        fig = figure(name, study.experiment, nothing, {}, {})
        assert not any(axes.lines for axes in fig.figure.axes)
    assert "No rates were fitted." in words(fig)


# --- fits and tables ------------------------------------------------------------------------------


def test_a_law_of_infinite_sizes_drops_their_terms():
    fit = {
        "terms": {"1/L": {"amplitude": 3.0}, "1/sqrt(D)": {"amplitude": 2.0}},
    }
    assert fits.law(fit, 3, 1, 4) == pytest.approx(np.sqrt(2))
    assert fits.law(fit, 0, 0, 4) == pytest.approx(1.0)
    assert fits.law({**fit, "floor": {"amplitude": 1.0}}, 3, 1, 4) == pytest.approx(np.sqrt(3))
    assert fits.law({"terms": {"D^7": {"amplitude": 1.0}}}, 1, 1, 1) is None


def test_rows_hold_every_exponent_and_amplitude(study):
    rates = study.rates()
    rows = rates_table_rows(rates)
    key = [(row["pair"], row["quantity"], row["step"], row["variable"]) for row in rows]
    single = rows[key.index(("mean_ode-dmft", "hidden", 14, "1/D"))]
    fit = rates["pairs"]["mean_ode-dmft"]["hidden"]["14"]
    assert single["kind"] == "fit"
    assert single["exponent"] == fit["exponent"]
    assert [single["exponent_low"], single["exponent_high"]] == fit["exponent_interval"]
    assert single["amplitude"] == fit["amplitude_at_theory"]
    assert (single["used"], single["total"], single["diverged"]) == (9, 9, 0)
    terms = [row for row in rows if row["kind"] == "term" and row["pair"] == "finite-dmft"]
    assert {row["variable"] for row in terms if row["quantity"] == "hidden"} == set(
        synthetic.HIDDEN
    )
    budgets = [row for row in rows if row["kind"] == "budget"]
    assert {row["theory"] for row in budgets} == {-1 / 6, -1 / 5}
    assert all(row["reason"] == "" for row in rows)


def test_rows_say_why_a_fit_is_missing():
    rows = rates_table_rows(all_diverged().rates())
    rows = [row for row in rows if row["pair"] == "finite-wide"]
    assert {row["reason"] for row in rows} == {"no cell is left"}
    assert {row["diverged"] for row in rows} == {9}
    assert {row["exponent"] for row in rows} == {None}
    empty = rates_table_rows({"pairs": {"finite-wide": {"hidden": {"14": None}}}})
    assert [row["reason"] for row in empty] == ["no fit was made"]


def test_what_stands_in_for_a_fit_has_a_row():
    fit = {
        "variable": "1/L + sqrt(D/(LM))",
        "terms": {"sqrt(D/(LM))": {"amplitude": 0.7, "amplitude_interval": [0.6, 0.8]}},
        "floor": {"amplitude": 0.01, "amplitude_interval": [0.0, 0.02]},
        "fixed_budget": {"exponent": None, "points": [], "theory": -1 / 6, "reason": "too few"},
    }
    rows = rates_table_rows({"pairs": {"finite-dmft": {"hidden": {"14": fit}}}})
    assert [row["kind"] for row in rows] == ["term", "floor", "budget"]
    assert rows[1]["amplitude"] == 0.01
    assert rows[2]["reason"] == "too few"
    failed = {**fit, "terms": None, "floor": None, "reason": "collinear"}
    first, *_ = rates_table_rows({"pairs": {"finite-dmft": {"hidden": {"14": failed}}}})
    assert (first["variable"], first["reason"]) == ("all terms", "collinear")


def test_measured_rates_are_drawn_as_they_are_given():
    study = small()
    rates = {"steps": [LAST], "pairs": fit_rates(study.errors(), [LAST], 0)}
    for name in FIGURES:
        fig = figure(name, study.experiment, study.open_store, study.errors(), rates)
        text = words(fig)
        if name == "three_terms":
            for pair, _ in TERMS:
                fit = rates["pairs"][pair]["hidden"][str(LAST)]
                interval = fit["exponent_interval"]
                shown = style.with_interval(fit["exponent"], interval, style.fixed)
                assert f"exponent {shown}" in text
            resolved, unresolved = both(fig.figure.axes[1])
            drawn_shapes = sum(group.shape[1] for group in resolved)
            assert drawn_shapes == rates["pairs"]["wide-mean_ode"]["hidden"][str(LAST)]["shapes"]
            hollow = sum(group.shape[1] for group in unresolved)
            assert drawn_shapes + hollow == 9


def test_the_table_shows_what_the_rates_say(study, full):
    text = words(full["rates_table"])
    fit = study.rates()["pairs"]["wide-mean_ode"]["output"]["5"]
    assert style.with_interval(fit["exponent"], fit["exponent_interval"], style.fixed) in text
    assert (
        style.with_interval(fit["amplitude_at_theory"], fit["amplitude_at_theory_interval"]) in text
    )
    assert "77/81" in words(drawn(some_diverged(), "rates_table"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5034, "0.503"),
        (-12.34, "−12.3"),
        (1234.5, "1234"),
        (1.5e-5, "1.50e−5"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_are_written_with_three_digits(value, text):
    assert style.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "1/2"),
        (1.0, "1"),
        (-1 / 6, "−1/6"),
        (-0.2, "−1/5"),
        (-0.3, "−3/10"),
        (0.123, "0.123"),
    ],
)
def test_exponents_of_theory_are_written_as_fractions(value, text):
    assert style.fraction(value) == text


# --- families of shapes ---------------------------------------------------------------------------


def test_frontier_shows_every_pair_of_every_family(of_families):
    study = families()
    rates = study.rates()
    places = [(name, quantity) for name in rates["families"] for quantity in ("hidden", "output")]
    drawn_fits = 0
    for axes, (name, quantity) in zip(of_families["frontier"].figure.axes, places, strict=True):
        theories = lines(axes, "_theory")
        fits = iter(lines(axes, "_fit"))
        written = " ".join(text.get_text() for text in axes.texts)
        colours = {}
        for line in axes.lines:
            if line.get_label() == "_points":
                colours[line.get_color()] = np.array(line.get_data())
        assert len(colours) == 3
        for number, (pair, found) in enumerate(rates["families"][name]["pairs"].items()):
            fit = found[quantity][str(LAST)]
            points = colours[PAIR_COLOURS[pair]]
            np.testing.assert_allclose(points[0], [p["parameters"] for p in fit["points"]])
            np.testing.assert_allclose(points[1], [p["error"] for p in fit["points"]])
            P, error = theories[number]
            slope = np.log(error[1] / error[0]) / np.log(P[1] / P[0])
            assert slope == pytest.approx(fit["theory"])
            for of_range in fit["fits"]:
                if of_range["exponent"] is None:
                    continue
                P, error = next(fits)
                drawn_fits += 1
                slope = np.log(error[1] / error[0]) / np.log(P[1] / P[0])
                assert slope == pytest.approx(of_range["exponent"])
                np.testing.assert_allclose(P, of_range["parameters"])
                shown = style.with_interval(
                    of_range["exponent"],
                    of_range["exponent_interval"],
                    lambda value: style.fixed(value, 3),
                )
                assert shown in written
            assert style.fraction(fit["theory"]) in written
            # Nothing that is drawn lies under the words, or beyond the axis.
            assert axes.get_ylim()[0] < points[1].min()
            assert points[1].max() < axes.get_ylim()[1]
        assert next(fits, None) is None
    assert drawn_fits >= 20


def test_frontier_says_what_a_family_is_and_what_the_colours_are(of_families):
    text = words(of_families["frontier"])
    assert r"family hidden: D \sim P^{1/3}, L \sim P^{1/6}" in text
    assert r"family output: D \sim P^{2/5}, L \sim P^{1/4}" in text
    assert r"P \geq 10^{4}" in text
    for pair in ("finite-mean_ode", "mean_ode-dmft", "finite-dmft"):
        assert style.pair_name(pair) in text


def test_frontier_counts_what_it_leaves_out():
    study = families()
    study.diverged = {(*shape, 0) for shape in study.experiment.shapes}
    assert "hidden, finite network – DMFT limit, hidden: 27 of 36 cells used, 9 diverged." in words(
        drawn(study, "frontier")
    )
    study.diverged = {
        (*shape, seed) for shape in study.experiment.shapes for seed in study.experiment.seeds
    }
    fig = drawn(study, "frontier")
    assert len(lines(fig.figure.axes[0], "_points")) == 1


def test_frontier_without_families_says_so(full):
    assert "no families of shapes" in words(full["frontier"])


def test_the_table_has_the_exponents_of_families(of_families):
    study = families()
    rates = study.rates()
    rows = [row for row in rates_table_rows(rates) if row["kind"] == "family"]
    assert len(rows) == 2 * 2 * 3 * 3 * len(rates["steps"])
    fit = rates["families"]["output"]["pairs"]["finite-dmft"]["output"][str(LAST)]["fits"][1]
    (row,) = [
        row
        for row in rows
        if (row["pair"], row["quantity"], row["step"], row["variable"])
        == ("finite-dmft", "output", LAST, "P ≥ 1e4, output")
    ]
    assert row["exponent"] == fit["exponent"]
    assert [row["exponent_low"], row["exponent_high"]] == fit["exponent_interval"]
    assert row["theory"] == pytest.approx(-1 / 5)
    shown = style.with_interval(
        fit["exponent"], fit["exponent_interval"], lambda value: style.fixed(value, 3)
    )
    assert shown in words(of_families["rates_table"])


def test_figures_of_grids_say_what_families_lack(of_families):
    text = words(of_families["error_vs_shape"])
    for symbol in "DLM":
        assert f"no two shapes of this experiment differ in {symbol} alone" in text
    assert "does not compare finite-wide" in words(of_families["three_terms"])


# --- what is predicted ----------------------------------------------------------------------------


def predicted(quantity: str, terms: str, L: float, M: float, D: float) -> float:
    """Evaluate some terms by hand."""
    a = PREDICTED[quantity]
    values = {
        "L": ("1/L", 1 / L),
        "W": ("sqrt(D/(LM))", np.sqrt(D / (L * M))),
        "D": ("1/sqrt(D)", D**-0.5),
        "A": ("D/(LM)", D / (L * M)),
        "B": ("1/sqrt(LM)", (L * M) ** -0.5),
    }
    return np.sqrt(sum((a[name] * x) ** 2 for name, x in (values[key] for key in terms)))


def check_predictions(fig: Figure, places, terms) -> int:
    """Hold all predicted lines of panels against the law; return how many there are."""
    count = 0
    for axes, quantity, place in places:
        for x, y in lines(axes, "_prediction"):
            wanted = [predicted(quantity, terms[quantity], *place(value, count)) for value in x]
            np.testing.assert_allclose(y, wanted)
            count += 1
    return count


def test_error_vs_shape_draws_the_prediction_and_not_the_fit(study):
    fig = drawn(study, "error_vs_shape", prediction())
    values = (8, 32, 128)
    place = {
        0: lambda x, k: (16, values[k % 3], x),
        1: lambda x, k: (x, 128, values[k % 3]),
        2: lambda x, k: (16, x, values[k % 3]),
    }
    places = [
        (axes, ("hidden", "output")[k // 3], place[k % 3])
        for k, axes in enumerate(fig.figure.axes[:6])
    ]
    terms = {"hidden": "LWD", "output": "LABD"}
    assert check_predictions(fig, places, terms) == 18
    for wrong in ({"hidden": "LWD", "output": "LAD"}, {"hidden": "WD", "output": "LABD"}):
        with pytest.raises(AssertionError):
            check_predictions(fig, places, wrong)
    for axes, _, _ in places:
        style_of = {
            line.get_label(): (line.get_alpha(), line.get_linestyle()) for line in axes.lines
        }
        assert style_of["_prediction"] == (None, "-")
        assert style_of["_fit"][0] < 0.6
    assert "prediction, without any fit" in words(fig)
    assert "No predict" not in words(fig)


def test_three_terms_draws_predicted_terms_alone(study):
    fig = drawn(study, "three_terms", prediction())
    terms = (("W", "L", "D"), ("AB", "L", "D"))
    for row, quantity in enumerate(("hidden", "output")):
        for column, own in enumerate(terms[row]):
            axes = fig.figure.axes[3 * row + column]
            found = lines(axes, "_prediction")
            assert len(found) == (2 if own == "AB" else 1)
            for (x, y), D in zip(found, (8, 128), strict=False):
                for value, error in zip(x, y, strict=True):
                    sizes = {
                        "W": (1, 1, value),
                        "L": (value, 1, 1),
                        "D": (1, 1, value),
                        "AB": (D / value, 1, D),
                    }[own]
                    assert error == pytest.approx(predicted(quantity, own, *sizes))
            assert not lines(axes, "_theory")
            assert lines(axes, "_fit")
    fit = study.rates()["pairs"]["finite-wide"]["hidden"][str(LAST)]["amplitude_at_theory"]
    assert f"predicted 0.700, fitted {style.number(fit)}" in words(fig)
    assert r"1/\sqrt{LM}: predicted 0.40, fitted " in words(fig)


def test_error_vs_parameters_draws_the_least_error_that_is_predicted(study):
    fig = drawn(study, "error_vs_parameters", prediction())
    for axes, quantity, terms in zip(
        fig.figure.axes, ("hidden", "output"), ("LWD", "LABD"), strict=True
    ):
        ((P, least),) = lines(axes, "prediction, best shape")
        for number, error in zip(P[::10], least[::10], strict=True):
            D = np.geomspace(1, number, 20001)
            assert error == pytest.approx(
                predicted(quantity, terms, number / D, 1, D).min(), rel=1e-4
            )
        assert not lines(axes, "_theory")


def test_frontier_draws_the_prediction_for_the_shapes_of_the_points():
    study = families()
    rates = study.rates()
    fig = drawn(study, "frontier", prediction())
    terms = {
        "finite-mean_ode": {"hidden": "LW", "output": "LAB"},
        "mean_ode-dmft": {"hidden": "D", "output": "D"},
        "finite-dmft": {"hidden": "LWD", "output": "LABD"},
    }
    places = [(name, quantity) for name in rates["families"] for quantity in ("hidden", "output")]
    for axes, (name, quantity) in zip(fig.figure.axes, places, strict=True):
        found = lines(axes, "_prediction")
        pairs = rates["families"][name]["pairs"]
        for (P, error), (pair, of_pair) in zip(found, pairs.items(), strict=True):
            points = of_pair[quantity][str(LAST)]["points"]
            np.testing.assert_allclose(P, [point["parameters"] for point in points])
            sizes = [[point[size] for size in ("depth", "width", "embed_dim")] for point in points]
            wanted = [predicted(quantity, terms[pair][quantity], *shape) for shape in sizes]
            np.testing.assert_allclose(error, wanted)
        assert not lines(axes, "_theory")


@pytest.mark.parametrize("name", ["error_vs_shape", "error_vs_parameters", "three_terms"])
def test_figures_say_what_is_not_predicted(study, name):
    assert "No prediction was made." in words(drawn(study, name))
    fig = drawn(study, name, prediction("D/(LM)", "it would take about 90 minutes"))
    assert (
        "No predicted curve where output errors depend on D/(LM) (it would take about 90 "
        "minutes)." in words(fig)
    )
    fig = drawn(study, name, prediction("1/L"))
    assert "No predicted curve where hidden and output errors depend on 1/L." in words(fig)
    # What is whole is drawn all the same.
    if name == "three_terms":
        assert [len(lines(axes, "_prediction")) for axes in fig.figure.axes[:6]] == [
            1,
            0,
            1,
            2,
            0,
            1,
        ]
        assert [len(lines(axes, "_theory")) for axes in fig.figure.axes[:6]] == [0, 1, 0, 0, 1, 0]


# --- what is told beside the figures --------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [[1, 1000, 1024, 1100, 1000000], [10, 11, 12, 13, 1000], [2, 3, 4, 5, 6, 7, 8, 9, 10, 2000]],
)
def test_labels_of_sizes_do_not_touch(sizes):
    fig = new_figure(0.8)
    for axes in fig.subplots(1, 3):
        axes.plot(sizes, sizes)
        axes.set_xscale("log")
        panels.size_ticks(axes, sizes)
        axes.set_yticks([])
    no_words_lie_on_other_words(fig)
    ticks = axes.get_xticks()
    assert {sizes[0], sizes[-1]} <= set(ticks)


def test_warnings_name_each_distance_once_with_most_cells_below():
    def warned(below: int) -> dict:
        words = f"{below} cells" if below else None
        return {"warning": words, "cells": {"below_resolution": below}}

    rates = {
        "pairs": {
            "finite-wide": {
                "hidden": {"5": warned(0), "14": warned(0)},
                "output": {"5": warned(7), "14": warned(3)},
            }
        }
    }
    assert list(fits.warnings(rates)) == [("finite-wide, output, step 5", "7 cells")]
    assert list(fits.warnings({})) == []
