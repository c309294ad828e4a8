"""The trees of the tests of the workflow."""

from workflow_trees import finished_tree, source_tree

__all__ = ["finished_tree", "source_tree"]
