"""Limits of seeds with different depth nodes in one store."""

from __future__ import annotations

import numpy as np
import xarray as xr

from resnet_limits.limits import depth
from resnet_limits.stages.limits import _at_knots


def test_states_at_more_knots_are_those_of_the_polynomial() -> None:
    coarse, fine = depth.continuous(4).knots, depth.continuous(6).knots

    def states(knots: np.ndarray) -> xr.Dataset:
        powers = np.stack([knots**n for n in range(4)])
        values = np.einsum("snr,sk->skr", np.ones((4, 3, 2)), powers)
        return xr.Dataset(
            {
                "hidden_coef": (("step", "node", "embedding_direction"), values),
                "loss": (("step",), np.arange(4.0)),
            },
            coords={"step": np.arange(4), "node": knots},
            attrs={"device": "cpu"},
        )

    found = _at_knots(states(coarse), fine)
    xr.testing.assert_allclose(found, states(fine), atol=1e-13)
    assert found.attrs == {"device": "cpu"}
    same = states(coarse)
    assert _at_knots(same, coarse) is same
