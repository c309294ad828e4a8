"""What a picture says of its making, in the metadata that its format has for that."""

from __future__ import annotations

from collections.abc import Iterable

from resnet_limits.config import Experiment
from resnet_limits.provenance import citation
from resnet_limits.provenance.keys import ancestors, stage_key
from resnet_limits.provenance.record import git_state

PictureMetadata = dict[str, dict[str, str | list[str] | None]]


def picture_metadata(
    experiment: Experiment,
    name: str,
    *,
    title: str = "",
    description: str = "",
    sources: Iterable[str] | None = None,
) -> PictureMetadata:
    """Say what a picture shows and what it was made from, for each format.

    The results behind a picture stand by their stage keys and not by their digests, which hold
    times: so the same code draws the same bytes from the same results.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    name : str
        Name of the figure.
    title, description : str
        Its title, and what it shows in words; the name and the experiment's by default.
    sources : iterable of str, optional
        The stages whose results it was drawn from; those of all figures by default.

    Returns
    -------
    dict
        By format (``"png"``, ``"svg"``, ``"pdf"``), what ``Figure.savefig(metadata=...)`` takes
        for it: tEXt chunks, Dublin Core, and the PDF's information dictionary. No date is among
        them.
    """
    from resnet_limits import __version__

    title = title or name.replace("_", " ")
    description = description or f"{title} of the experiment {experiment.experiment}"
    keys = {
        stage: stage_key(stage, experiment)
        for stage in (ancestors("figures", experiment) if sources is None else sources)
    }
    source = f"experiment {experiment.experiment}: " + ", ".join(
        f"{stage} {key}" for stage, key in keys.items()
    )
    software = f"{citation.NAME} {__version__} (git {git_state()})"
    author = ", ".join(citation.AUTHORS)
    return {
        "png": {
            "Title": title,
            "Author": author,
            "Description": description,
            "Copyright": citation.LICENCE,
            "Software": software,
            "Source": source,
            "Comment": citation.references(),
        },
        "svg": {
            "Title": title,
            "Creator": [author],
            "Description": description,
            "Rights": [citation.LICENCE],
            "Publisher": [software],
            "Source": source,
            "Relation": citation.references(),
            "Identifier": name,
            "Date": None,
        },
        "pdf": {
            "Title": title,
            "Author": author,
            "Subject": description,
            "Keywords": f"{source}; {citation.references()}",
            "Creator": software,
            "Producer": None,
            "CreationDate": None,
        },
    }
