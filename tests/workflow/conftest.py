"""Trees that the tests of the workflow share."""

from workflow_trees import finished_tree, source_tree

__all__ = ["finished_tree", "source_tree"]
