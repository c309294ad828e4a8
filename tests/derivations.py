"""What a PROV document must be: every result leads to the experiment file, without circles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

EXPERIMENT = "results:experiment.yaml"


def loose_ends(document: Mapping[str, Any]) -> list[str]:
    """Find what is wrong with the derivations of a document in PROV-JSON."""
    sources: dict[str, set[str]] = defaultdict(set)
    for relation in document["wasDerivedFrom"].values():
        sources[relation["prov:generatedEntity"]].add(relation["prov:usedEntity"])
    for relation in document.get("hadMember", {}).values():
        sources[relation["prov:collection"]].add(relation["prov:entity"])
    findings = []
    names = [name for name in document["entity"] if name.startswith("results:")]
    ends = {EXPERIMENT, *(name for name in document["entity"] if name.startswith("input:"))}
    for name in names:
        if name not in ends and not sources[name]:
            findings.append(f"{name}: derived from nothing")
        findings += [f"{name}: derived from {s}, unknown" for s in sources[name] - {*names, *ends}]
    # Each round takes away what is derived from nothing that is left.
    left = set(names)
    while free := {name for name in left if not sources[name] & left}:
        left -= free
    findings += [f"{name}: in a circle" for name in sorted(left)]
    made = {relation["prov:entity"] for relation in document["wasGeneratedBy"].values()}
    collections = {relation["prov:collection"] for relation in document["hadMember"].values()}
    findings += [f"{n}: made by nothing" for n in names if n not in made | collections | ends]
    return findings
