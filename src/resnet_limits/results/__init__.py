"""All results of one experiment as one lazy object.

`folder` finds out which results are there without opening them, `lazy` has arrays that are read
block by block, `tree` lays them out with sizes as coordinates, `measures` computes what is asked of
them, and `opened` is what users hold.
"""

from resnet_limits.results.folder import NotThereError
from resnet_limits.results.opened import Results, open_results

__all__ = ["NotThereError", "Results", "open_results"]
