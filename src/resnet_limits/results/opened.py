"""The object that stands for all results of one experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from resnet_limits import fitted, integrity
from resnet_limits.cells import VARIABLES
from resnet_limits.config import Experiment, InputError
from resnet_limits.kinds import CELL_KEYS, SIZES, STATUS
from resnet_limits.laws import LAWS, PREDICTED
from resnet_limits.problem import Problem
from resnet_limits.results import measures, shown, tree
from resnet_limits.results.folder import Folder, NotThereError
from resnet_limits.results.measures import Chosen, chosen, is_one

_LIMITS = ("dmft", "mean_ode", "wide")


def open_results(path: Path | str) -> Results:
    """Open all results of one experiment, lazily.

    Names of files are listed and a few lines of metadata read; no store is opened, and no array is
    read, before it is used.

    Parameters
    ----------
    path : path
        ``results/<experiment>``. It need not be complete.

    Returns
    -------
    Results

    Raises
    ------
    InputError
        If there is no such folder, or no results in it.
    """
    return Results(Folder(path))


class Results:
    """All results of one experiment; made by `open_results`.

    Where the experiment's shapes are all combinations of some depths, widths and embedding
    dimensions, these sizes are dimensions; where they are not, one dimension ``shape`` has them as
    the levels of its index. Arrays are Dask arrays: ``.load()``, ``.values`` or a plot reads them.
    Networks that were not run, and steps from the one on at which a network diverged, are NaN, as
    ``status`` says.

    Attributes
    ----------
    path : Path
        The folder.
    experiment : Experiment
        The validated experiment, as the youngest of the results has it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._nodes: dict[str, xr.Dataset] = {}
        self.path: Path = folder.path
        self.experiment: Experiment = folder.experiment

    # --- datasets -------------------------------------------------------------------------------

    def keys(self) -> tuple[str, ...]:
        """Name the datasets: ``results[name]`` gives one of them."""
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        folder = self._folder
        names = ["problem"] if folder.is_there("problem") else []
        if folder.cells("finite"):
            names.append("networks")
            names += [f"fields/L{depth}_D{embed_dim}" for depth, embed_dim in folder.widths]
        names += [f"limits/{kind}" for kind in tree.limits(folder)]
        return (*names, *(f"errors/{pair}" for pair in tree.pairs(folder)))

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the datasets."""
        return iter(self.keys())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.keys())

    def __getitem__(self, name: str) -> xr.Dataset:
        """Give one dataset, lazily.

        Parameters
        ----------
        name : str
            ``problem``; ``networks``, with ``loss``, ``output``, ``status`` and ``diverged_step``
            of all networks; ``fields/L{L}_D{D}``, with ``hidden`` and ``backward`` of the networks
            of one depth and embedding dimension; ``limits/dmft``, ``limits/mean_ode``,
            ``limits/wide``, over the same coordinates as the networks; ``errors/PAIR``, the
            distances of a pair, over these too.

        Raises
        ------
        NotThereError
            If there is no such dataset; it is a KeyError.
        """
        if name not in self._nodes:
            if name not in self.keys():
                several = [key for key in self.keys() if not key.startswith("fields/")]
                raise NotThereError(
                    f"{name}: no such dataset; there are: {', '.join(several)}, and "
                    "fields/L{L}_D{D} of each depth and embedding dimension"
                )
            self._nodes[name] = self._build(name)
        return self._nodes[name]

    def _build(self, name: str) -> xr.Dataset:
        group, _, rest = name.partition("/")
        match group:
            case "problem":
                return self._folder.open("problem")
            case "networks":
                return tree.stacked(self._folder, "finite")
            case "fields":
                depth, embed_dim = (int(part[1:]) for part in rest.split("_"))
                return tree.network_fields(self._folder, depth, embed_dim)
            case "limits":
                return tree.limit(self._folder, rest)
        return tree.distances(self._folder, rest)

    @cached_property
    def tree(self) -> xr.DataTree:
        """All datasets as one lazy DataTree, under the names that `keys` gives."""
        nodes = {f"/{name}": self[name] for name in self.keys()}
        root = xr.Dataset(attrs={"title": f"Results of {self.experiment.experiment}"})
        return xr.DataTree.from_dict({"/": root, **nodes}, name=self.experiment.experiment)

    def store(self, kind: str, **sizes: int) -> xr.Dataset:
        """Open one store as it is on disk, lazily.

        Parameters
        ----------
        kind : str
            ``problem``, ``dmft``, ``mean_ode``, ``wide`` or ``finite``.
        **sizes : int
            The sizes that it depends on, such as ``depth=16, embed_dim=64`` for ``wide``.

        Raises
        ------
        NotThereError
            If it is not there.
        InputError
            If the kind or the names of the sizes are not those of a store.
        """
        if kind not in (*_LIMITS, "finite", "problem"):
            raise InputError(f"kind: got {kind}; allowed: problem, {', '.join(_LIMITS)}, finite")
        if set(sizes) != set(CELL_KEYS[kind]):
            wanted = ", ".join(CELL_KEYS[kind]) or "no sizes"
            raise InputError(f"{kind}: got {', '.join(sizes) or 'no sizes'}; allowed: {wanted}")
        return self._folder.open(kind, **{name: sizes[name] for name in CELL_KEYS[kind]})

    @property
    def networks(self) -> xr.Dataset:
        """Loss, output and status of all networks: ``results["networks"]``."""
        return self["networks"]

    @property
    def loss(self) -> xr.DataArray:
        """Loss of all networks, dimensions (sizes, seed, step)."""
        return self.networks["loss"]

    @property
    def status(self) -> xr.DataArray:
        """How every network ended, dimensions (sizes, seed): 0 ok, 1 diverged, 2 not_run."""
        return self.networks["status"]

    def limit(self, kind: str = "dmft") -> xr.Dataset:
        """Give the limits of one kind, ``results["limits/KIND"]``, aligned with the networks.

        So ``results.loss - results.limit("wide").loss`` compares every network with the limit of
        its depth, embedding dimension and seed.
        """
        return self[f"limits/{kind}"]

    @property
    def diverged(self) -> pd.DataFrame:
        """Networks that diverged: sizes, seed, and the first step that did.

        Manifests say in which stores there are any; only these are opened.
        """
        rows = []
        for cell in self._folder.cells("finite"):
            path = self._folder.paths.manifest("finite", **cell)
            try:
                counts = integrity.read_manifest(path).get("status") or {"diverged": 1}
            except integrity.StoreError:
                counts = {"diverged": int(self._folder.is_there("finite", **cell))}
            if not counts.get("diverged"):
                continue
            found = self._folder.open("finite", **cell)[["status", "diverged_step"]].load()
            rows += [
                {**cell, "seed": int(seed), "step": int(step)}
                for seed, status, step in zip(
                    *(found[name].values for name in ("seed", "status", "diverged_step")),
                    strict=True,
                )
                if STATUS[status] == "diverged"
            ]
        return pd.DataFrame(rows, columns=[*SIZES, "seed", "step"]).astype(int)

    # --- fields and kernels -----------------------------------------------------------------------

    @cached_property
    def _problem(self) -> Problem:
        return measures.problem(self._folder)

    def field(
        self,
        depth: int,
        width: int,
        embed_dim: int,
        *,
        seed: Chosen = None,
        limit: str | None = None,
        of: str = "hidden",
        s: Sequence[float] | None = None,
    ) -> xr.DataArray:
        """Give the field of the networks of one shape, or of their limit, lazily.

        Both have the same dimensions and coordinates, so that one can be subtracted from the other.

        Parameters
        ----------
        depth, width, embed_dim : int
            L, M, D of the networks.
        seed : int or sequence of int, optional
            Some of the seeds; all if left out. One number drops the dimension.
        limit : {"dmft", "mean_ode", "wide"}, optional
            The field that this limit has for the networks' embedding rows, in place of the
            networks'. The embedding rows are drawn at once, for which the data are read.
        of : {"hidden", "backward"}
            h, or b.
        s : sequence of float, optional
            Depths in [0, 1] of a limit; those at which the networks are kept if left out.

        Returns
        -------
        DataArray, dimensions (seed, step, depth_point, sample, [token,] coordinate)
            With the coordinates ``layer`` and ``s``. The dimension is ``s`` in place of
            ``depth_point`` where depths are given.

        Raises
        ------
        NotThereError
            If the networks or the limit are not there.
        InputError
            If an argument is not allowed.
        """
        cell = self._cell(depth, width, embed_dim, limit)
        seeds = self._seeds(seed, cell)
        self._check(limit, of, s)
        if limit is None:
            found = measures.network_field(self._folder, cell, of)
        else:
            points = self._points(depth, s)
            found = measures.limit_field(
                self._folder, self._problem, limit, cell, seeds, points, of
            ).sel(step=self._folder.steps("finite"))
        return measures.only(found, seeds, seed)

    def kernel(
        self,
        depth: int,
        width: int,
        embed_dim: int,
        *,
        seed: Chosen = None,
        limit: str | None = None,
        of: str = "hidden",
        step: Chosen = None,
        s: Sequence[float] | None = None,
    ) -> xr.DataArray:
        """Give the kernel of the networks of one shape, or of their limit, lazily.

        The mean over coordinates of the product of a field at two steps and two samples: Gamma_h,
        or Gamma_b.

        Parameters
        ----------
        depth, width, embed_dim, seed, limit, of, s
            As for `field`.
        step : int or sequence of int, optional
            The steps that are taken, on both sides; all that networks keep if left out. One number
            drops the dimensions.

        Returns
        -------
        DataArray, dimensions (seed, depth_point, step, sample, [token,] step_other, sample_other, \
[token_other])
            The DMFT limit's has no ``seed``: it is the one of infinite D. The others are taken with
            the Gram matrix of each seed's embedding rows.

        Raises
        ------
        NotThereError
            If the networks or the limit are not there.
        InputError
            If an argument is not allowed.
        """
        cell = self._cell(depth, width, embed_dim, limit)
        seeds = self._seeds(seed, cell)
        self._check(limit, of, s)
        steps = self._steps(step, limit)
        if limit is None:
            field = measures.network_field(self._folder, cell, of)
            found = measures.network_kernel(measures.only(field, seeds, seeds).sel(step=steps))
        else:
            points = self._points(depth, s)
            found = measures.limit_kernel(
                self._folder, self._problem, limit, cell, seeds, steps, points, of
            )
        if is_one(step):
            found = found.isel(step=0, step_other=0)
        return measures.only(found, seeds, seed) if "seed" in found.dims else found

    def _cell(self, depth: int, width: int, embed_dim: int, limit: str | None) -> dict[str, int]:
        cell = {"depth": int(depth), "width": int(width), "embed_dim": int(embed_dim)}
        if limit is None:
            self._folder.require("finite", **cell)
        elif limit in _LIMITS:
            self._folder.require(limit, **{name: cell[name] for name in CELL_KEYS[limit]})
        return cell

    def _check(self, limit: str | None, of: str, s: Sequence[float] | None) -> None:
        if limit not in (None, *_LIMITS):
            raise InputError(f"limit: got {limit}; allowed: {', '.join(_LIMITS)}, or none")
        if of not in tree.FIELDS:
            raise InputError(f"of: got {of}; allowed: {', '.join(tree.FIELDS)}")
        if s is not None and limit is None:
            raise InputError("s: networks are kept at their own depths; allowed: with a limit")
        if s is not None and not all(0 <= point <= 1 for point in s):
            raise InputError("s: got a depth outside; allowed: numbers from 0 to 1")

    def _points(self, depth: int, s: Sequence[float] | None) -> xr.DataArray:
        if s is None:
            return measures.depth_points(self._folder, depth)
        return xr.DataArray(list(s), dims="s", coords={"s": list(s)})

    def _seeds(self, seed: Chosen, cell: dict[str, int]) -> list[int]:
        return chosen("seed", seed, list(self.experiment.cell_seeds(**cell)))

    def _steps(self, step: Chosen, limit: str | None) -> list[int]:
        kept = self._folder.steps("finite")
        if step is None or limit is None:
            return chosen("step", step, kept)
        return chosen("step", step, self._folder.steps(limit))

    # --- distances --------------------------------------------------------------------------------

    def distance(
        self,
        pair: str = "finite-dmft",
        observable: str = "hidden",
        by: str | Sequence[str] | None = None,
        *,
        step: int | None = None,
        depth: Chosen = None,
        width: Chosen = None,
        embed_dim: Chosen = None,
        seed: Chosen = None,
    ) -> xr.DataArray:
        """Give the distances of a pair, lazily.

        Parameters
        ----------
        pair : str
            One of those that were measured: ``finite-dmft``, ``finite-mean_ode``, ``finite-wide``,
            ``wide-mean_ode``, ``mean_ode-dmft``.
        observable : {"hidden", "output", "hidden_max_mean_abs"}
            RMS distance of h at s = 1, or of f; or the published metric of h.
        by : str or sequence of str, optional
            What stays of the dimensions besides ``step``: ``depth``, ``width``, ``embed_dim``,
            ``seed``, ``shape``, ``step``; over the others the root mean square is taken, of the
            cells that ended well. With ``s`` it is the RMS distance of h over the depth of one
            network, whose sizes have to be given. If left out, every cell as it was measured, also
            what a network had done before it diverged.
        step : int, optional
            One step; all that are kept if left out. -1 is the last one that is kept.
        depth, width, embed_dim, seed : int or sequence of int, optional
            Only these. One number drops the dimension.

        Returns
        -------
        DataArray
            Dimensions: those of ``by``, or all, and ``step`` unless one is given. NaN where there
            is nothing.

        Raises
        ------
        NotThereError
            If the pair was not measured.
        InputError
            If an argument is not allowed.
        """
        self._folder.require_pair(pair, tree.pairs(self._folder))
        data = self[f"errors/{pair}"]
        if observable not in VARIABLES:
            raise InputError(f"observable: got {observable}; allowed: {', '.join(VARIABLES)}")
        given = measures.given(depth=depth, width=width, embed_dim=embed_dim, seed=seed)
        names = () if by is None else (by,) if isinstance(by, str) else tuple(by)
        sizes = LAWS[pair]["hidden"].depends
        allowed = (*tree.size_dims(self._folder, sizes), *sizes, "seed", "step", "s")
        for name in names:
            if name not in allowed:
                raise InputError(f"by: got {name}; allowed: {', '.join(dict.fromkeys(allowed))}")
        if "s" in names:
            if observable != "hidden":
                raise InputError(f"by: s of {observable}; allowed: of hidden")
            found = measures.over_depth(self._folder, self._problem, pair, names, given)
        else:
            data = measures.selected(data, given)
            variable = VARIABLES[observable][0]
            found = data[variable] if by is None else measures.rms(data, variable, names)
        attrs = {"pair": pair, "observable": observable, "units": "1"}
        found = found.rename("distance").assign_attrs(
            long_name=f"distance of {observable}, {pair}", **attrs
        )
        return found if step is None else found.sel(step=self._one_step(found, step))

    @staticmethod
    def _one_step(found: xr.DataArray, step: int) -> int:
        there = found["step"].values.tolist()
        return int(there[-1]) if step == -1 else chosen("step", step, there)[0]

    # --- predictions and verdicts -----------------------------------------------------------------

    @cached_property
    def prediction(self) -> dict[str, Any]:
        """The contents of prediction.json; empty if there is none."""
        return self._folder.json("prediction")

    def predicted(
        self, pair: str = "finite-dmft", observable: str = "hidden", by: str | None = None
    ) -> xr.DataArray:
        """Give the distances of a pair that the limit alone predicts, to leading order.

        Parameters
        ----------
        pair : str
            As for `distance`.
        observable : {"hidden", "output"}
            Others are not predicted.
        by : {"s"}, optional
            The distance of h at every depth in place of that at s = 1.

        Returns
        -------
        DataArray
            Over the sizes that the pair depends on, ``step``, and ``s`` by depth. NaN where a term
            is not known; the attribute ``without`` names such terms.

        Raises
        ------
        NotThereError
            If no prediction was made.
        InputError
            If an argument is not allowed.
        """
        if pair not in LAWS:
            raise InputError(f"pair: got {pair}; allowed: {', '.join(LAWS)}")
        if observable not in PREDICTED:
            raise InputError(f"observable: got {observable}; allowed: {', '.join(PREDICTED)}")
        if not self.prediction:
            raise NotThereError(f"{self._folder.paths.store('prediction')}: no prediction was made")
        if by is None:
            return tree.predictions(self._folder, self.prediction, pair, observable)
        if by != "s" or observable != "hidden":
            raise InputError(f"by: got {by} of {observable}; allowed: s of hidden, or none")
        return tree.predictions_over_depth(self._folder, self.prediction, pair)

    @cached_property
    def _rates(self) -> dict[str, Any]:
        return self._folder.json("rates")

    @property
    def claims(self) -> pd.DataFrame:
        """The claims with their verdicts, one a row; empty if rates.json is not there."""
        rows = []
        for claim in self._rates.get("claims") or ():
            low, high = claim["interval"] or (None, None)
            rows.append(
                {
                    **claim["where"],
                    **{name: claim[name] for name in ("claim", "theory", "predicted")},
                    "measured": claim["measured"],
                    "low": low,
                    "high": high,
                    **{name: claim[name] for name in ("verdict", "why")},
                }
            )
        return pd.DataFrame(rows, columns=_CLAIM_COLUMNS)

    @property
    def rates(self) -> pd.DataFrame:
        """The exponents and amplitudes of rates.json, one a row."""
        return pd.DataFrame(fitted.rates_table_rows(self._rates))

    # --- shown ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Say what is there, and how to go on."""
        return shown.text(self._folder, self._rates)

    def _repr_html_(self) -> str:
        return shown.html(self._folder, self._rates)


_CLAIM_COLUMNS = [
    *("pair", "observable", "step", "claim", "theory", "predicted", "measured", "low", "high"),
    *("verdict", "why"),
]
