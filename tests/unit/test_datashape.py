"""Shapes of a data file, from its header alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from resnet_limits.datashape import shapes


def dataset(*rows: int) -> xr.Dataset:
    dims = ("sample", "token")[: len(rows)]
    return xr.Dataset(
        {
            "x": ((*dims, "input"), np.ones((*rows, 5))),
            "y": ((*dims, "target"), np.ones((*rows, 2))),
        }
    )


def as_npz(path: Path, data: xr.Dataset) -> Path:
    np.savez_compressed(path / "d.npz", x=data.x.values, y=data.y.values)
    return path / "d.npz"


def as_zarr(path: Path, data: xr.Dataset, **options: object) -> Path:
    data.to_zarr(path / "d.zarr", **options)
    return path / "d.zarr"


def as_zip(path: Path, data: xr.Dataset) -> Path:
    from zarr.storage import ZipStore

    with ZipStore(path / "d.zarr.zip", mode="w") as store:
        data.to_zarr(store, consolidated=False)
    return path / "d.zarr.zip"


def as_classic(path: Path, data: xr.Dataset) -> Path:
    data.to_netcdf(path / "d.nc", engine="scipy")
    return path / "d.nc"


def as_netcdf4(path: Path, data: xr.Dataset) -> Path:
    pytest.importorskip("h5netcdf")
    data.to_netcdf(path / "d.nc", engine="h5netcdf")
    return path / "d.nc"


WRITERS = {
    "npz": as_npz,
    "zarr": as_zarr,
    "zarr 2": lambda path, data: as_zarr(path, data, zarr_format=2),
    "zarr zip": as_zip,
    "netCDF": as_classic,
    "netCDF-4": as_netcdf4,
}


@pytest.mark.parametrize("rows", [(400,), (3, 7)])
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_shapes_are_those_of_the_arrays(tmp_path: Path, kind: str, rows: tuple[int, ...]) -> None:
    data = dataset(*rows)
    file = WRITERS[kind](tmp_path, data)
    assert shapes(str(file)) == (data.x.shape, data.y.shape)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_has_no_shapes(tmp_path: Path, kind: str) -> None:
    """The negative control: what is not there is not made up."""
    file = WRITERS[kind](tmp_path, dataset(400))
    if file.is_dir():
        (file / "y" / ("zarr.json" if (file / "y" / "zarr.json").exists() else ".zarray")).unlink()
    else:
        file.write_bytes(file.read_bytes()[:30])
    assert shapes(str(file)) is None


def test_what_is_no_data_has_no_shapes(tmp_path: Path) -> None:
    assert shapes(str(tmp_path / "none.npz")) is None
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=np.ones((4,)))
    assert shapes(str(tmp_path / "a.npz")) is None
    np.savez(tmp_path / "b.npz", x=np.ones((4, 2)))
    assert shapes(str(tmp_path / "b.npz")) is None


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    file = as_npz(tmp_path, dataset(400))
    assert shapes(str(file))[0] == (400, 5)
    file = as_npz(tmp_path, dataset(40))
    assert shapes(str(file))[0] == (40, 5)
