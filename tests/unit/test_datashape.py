"""Shapes of a data file, from its header alone."""

from __future__ import annotations

import fcntl
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from resnet_limits import datashape
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


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call something that might wait forever."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "waits"
    return found[0]


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip", "d.nc"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert within(20, lambda: shapes(str(tmp_path / name))) is None


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    file = as_zarr(tmp_path, dataset(4))
    (file / "x" / "zarr.json").unlink()
    os.mkfifo(file / "x" / "zarr.json")
    assert within(20, lambda: shapes(str(file))) is None


def test_metadata_elsewhere_are_not_read(tmp_path: Path) -> None:
    file = as_zarr(tmp_path, dataset(4))
    metadata = file / "x" / "zarr.json"
    metadata.rename(file / "moved")
    metadata.symlink_to(file / "moved")
    assert shapes(str(file)) == ((4, 5), (4, 2))
    metadata.unlink()
    (file / "moved").rename(tmp_path / "moved")
    metadata.symlink_to(tmp_path / "moved")
    # The time of the folder may be the same as before.
    datashape._shapes.cache_clear()
    assert shapes(str(file)) is None


@pytest.mark.parametrize("kind", ["external", "external to a pipe", "soft", "group", "type"])
def test_hdf5_that_leads_elsewhere_has_no_shapes(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones((4, 3))
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(tmp_path / "d.nc", "w") as file:
        file["y"] = np.ones((4, 2))
        file["z"] = np.ones((4, 3))
        if kind.startswith("external"):
            name = "pipe.h5" if "pipe" in kind else "other.h5"
            file["x"] = h5py.ExternalLink(str(tmp_path / name), "/x")
        elif kind == "soft":
            file["x"] = h5py.SoftLink("/z")
        elif kind == "group":
            file.create_group("x")
        else:
            file["x"] = np.dtype("f8")
    assert within(20, lambda: shapes(str(tmp_path / "d.nc"))) is None


def test_hdf5_that_is_locked_has_shapes(tmp_path: Path) -> None:
    """Whoever plans takes no lock and waits for none."""
    with h5py.File(tmp_path / "d.nc", "w") as file:
        file["x"], file["y"] = np.ones((4, 3)), np.ones((4, 2))
    with (tmp_path / "d.nc").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert shapes(str(tmp_path / "d.nc")) == ((4, 3), (4, 2))


@pytest.mark.parametrize(("length", "read"), [(9_000, True), (11_000, False)])
def test_a_header_is_no_longer_than_numpy_takes(tmp_path: Path, length: int, read: bool) -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 3), }".ljust(length) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in "xy":
            archive.writestr(f"{name}.npy", member + bytes(96))
    assert shapes(str(tmp_path / "d.npz")) == (((4, 3), (4, 3)) if read else None)
    with np.load(tmp_path / "d.npz") as arrays:
        if read:
            assert arrays["x"].shape == (4, 3)
        else:
            with pytest.raises(ValueError, match="large"):
                _ = arrays["x"]
