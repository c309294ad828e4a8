"""Who wrote this software, under which licence, and the articles whose result it tests.

What ``CITATION.cff`` says, for programs: that file is no part of an installed package.
"""

from __future__ import annotations

from typing import NamedTuple

NAME = "resnet-limits"
AUTHORS = ("The resnet-limits developers",)
LICENCE = "MIT"


class Reference(NamedTuple):
    """An article.

    Attributes
    ----------
    title : str
        Its title.
    authors : tuple of str
        Family names.
    year : int
        Of its first version.
    arxiv : str
        Its number on arXiv.
    """

    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str

    @property
    def address(self) -> str:
        """The article's page."""
        return f"https://arxiv.org/abs/{self.arxiv}"


REFERENCES = (
    Reference(
        "ResNets of All Shapes and Sizes: "
        "Convergence of Training Dynamics in the Large-scale Limit",
        ("Chaintron", "Chizat", "Maass"),
        2026,
        "2603.18168",
    ),
    Reference("The Hidden Width of Deep ResNets", ("Chizat",), 2025, "2509.10167"),
)
"""The articles whose result is tested, the main one first."""


def references() -> str:
    """Name the articles in one line: ``arXiv:2603.18168, arXiv:2509.10167``."""
    return ", ".join(f"arXiv:{reference.arxiv}" for reference in REFERENCES)
