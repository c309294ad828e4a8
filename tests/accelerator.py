"""An accelerator that every machine has: host memory that the host's operations cannot reach.

While :class:`Accelerator` is entered, tensors asked for on :data:`DEVICE` are wrappers around
tensors of the host. Whatever mixes the two raises, as CUDA does, instead of computing. What a pass
needs on the device at once is counted, and passes can be recorded and replayed like CUDA graphs:
while one is recorded nothing runs, what would be computed is NaN, and what a graph may not contain
raises. Rounding and speed are the host's.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# torch's device without memory, which is there in every build and initialises no driver.
DEVICE = "meta"

_ATEN = torch.ops.aten
_MOVES = {_ATEN.copy_.default, _ATEN._to_copy.default}
# The devices' own kernels read positions from the host too.
_TAKES_HOST_POSITIONS = {_ATEN.index.Tensor}
_READS_BACK = {_ATEN._local_scalar_dense.default, _ATEN.nonzero.default}


class OnDevice(torch.Tensor):
    """A tensor of the accelerator."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        wrapper.inner = inner
        return wrapper

    def __getitem__(self, index):
        """Move a list of positions by an operation that is seen; torch fills it in unseen."""
        if isinstance(index, list):
            index = torch.tensor(index)
        return super().__getitem__(index)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: outside of the accelerator")


class Recording:
    """The stand-in for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for kept, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    kept.copy_(new)


class Accelerator(TorchDispatchMode):
    """Enter to have the accelerator.

    Attributes
    ----------
    calls : Counter of str
        Operations that ran on the device, by name.
    peak : int
        The most bytes that were held on the device at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.recording: Recording | None = None
        self.held = self.peak = 0
        self.owners: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, OnDevice)]
        device = kwargs.get("device")
        if device is not None:
            to_us = torch.device(device).type == DEVICE
            kwargs["device"] = "cpu"
        else:
            to_us = bool(ours)
        if func is _ATEN.copy_.default:
            to_us = isinstance(args[0], OnDevice)
        self._check(func, tensors, ours, to_us)
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        if self.recording is not None and to_us:
            results = self._record(func, inner_args, inner_kwargs)
        else:
            results = func(*inner_args, **inner_kwargs)
        if not to_us:
            # What came back from the device is a copy, whatever the host would have made of it.
            return tree_map(_copied, results) if ours and func in _MOVES else results
        self.calls[func.overloadpacket.__name__] += 1
        given = {id(x.inner): x for x in ours}
        if self.recording is None and (not ours or func in _MOVES):
            results = tree_map(lambda x: x if id(x) in given else _copied(x), results)
        return tree_map(lambda x: given[id(x)] if id(x) in given else self._put(x), results)

    def _check(self, func, tensors, ours, to_us) -> None:
        if any(x.device.type == DEVICE and not isinstance(x, OnDevice) for x in tensors):
            raise AssertionError(f"{func}: a tensor was made past the accelerator")
        if self.recording is not None and (ours or to_us):
            moved = func in _MOVES and len(ours) + (to_us and func is _ATEN._to_copy.default) < 2
            if func in _READS_BACK or moved:
                raise RuntimeError(f"{func}: not allowed while a graph is recorded")
        if not ours or func in _MOVES or func in _TAKES_HOST_POSITIONS:
            return
        mutable = func._schema.is_mutable and not isinstance(tensors[0], OnDevice)
        strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
        if strangers or mutable:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, found "
                f"{[(type(x).__name__, tuple(x.shape)) for x in tensors]}"
            )

    def _record(self, func, args, kwargs):
        is_view = any(result.alias_info for result in func._schema.returns)
        if func._schema.is_mutable:
            places = [
                args[index] if index < len(args) else kwargs.get(argument.name)
                for index, argument in enumerate(func._schema.arguments)
                if argument.alias_info and argument.alias_info.is_write
            ]
            results = places[0]
        else:
            results = func(*args, **kwargs)
        if not is_view or func._schema.is_mutable:
            self.recording.calls.append((func, args, kwargs, results))
        if not is_view:
            tree_map(lambda x: x.fill_(torch.nan) if x.is_floating_point() else x, results)
        return results

    def _put(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        wrapper = OnDevice(value)
        storage = value.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.owners[place]:
            self.held += size
            self.peak = max(self.peak, self.held)
        self.owners[place] += 1
        weakref.finalize(wrapper, self._release, place, size)
        return wrapper

    def _release(self, place: int, size: int) -> None:
        self.owners[place] -= 1
        if not self.owners[place]:
            self.held -= size

    @contextmanager
    def graph(self, recording: Recording, stream: object = None) -> Iterator[None]:
        """Stand in for ``torch.cuda.graph``."""
        self.recording = recording
        try:
            yield
        finally:
            self.recording = None

    def install(self, monkeypatch) -> None:
        """Let ``torch.cuda`` make and replay recordings of this accelerator."""

        class Stream:
            def wait_stream(self, other: object) -> None:
                """All work is done in order."""

        for name, value in (
            ("Stream", Stream),
            ("current_stream", Stream),
            ("stream", lambda _: nullcontext()),
            ("CUDAGraph", Recording),
            ("graph", self.graph),
        ):
            monkeypatch.setattr(torch.cuda, name, value)


def _inner(value):
    return value.inner if isinstance(value, OnDevice) else value


def _copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value
