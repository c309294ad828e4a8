"""How the threads of a process wait for each other.

Arrays here are small, and a thread that is done with its part of one spins until the others are. On
cores that are shared with other work that takes several times the processor time of the work.
"""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Have threads of OpenMP sleep while they wait, unless the environment says how they wait.

    Only what is called before the first array library is imported counts.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
