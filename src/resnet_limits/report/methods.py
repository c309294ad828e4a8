"""How the results were made, in words, from the experiment's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_limits.config import BranchConfig, Experiment
from resnet_limits.figures import style
from resnet_limits.fitted import verdict_counts
from resnet_limits.laws import law_of, terms_of
from resnet_limits.report.run import Made, span

_DATA = {
    "gaussian": "Gaussian data",
    "linear_teacher": "data of a noisy linear teacher",
    "digits": "images of handwritten digits",
    "in_context_regression": "linear regression in context",
    "characters": "the next character of a text",
    "file": "data from a file",
}

_CAUSES = {
    "finite-wide": "hidden width M",
    "wide-mean_ode": "depth L",
    "mean_ode-dmft": "embedding dimension D",
    "finite-mean_ode": "depth L and hidden width M",
    "finite-dmft": "all three",
}


@dataclass(frozen=True)
class Pair:
    """A pair that is compared: its name, what differs, and what theory expects."""

    name: str
    cause: str
    hidden: str
    output: str


def pairs(experiment: Experiment) -> list[Pair]:
    """Name the pairs that the experiment compares, with the terms of their distances."""
    return [
        Pair(style.pair_name(pair), _CAUSES[pair], _law(pair, "hidden"), _law(pair, "output"))
        for pair in experiment.pairs
    ]


def _law(pair: str, observable: str) -> str:
    law = " + ".join(map(style.variable_name, terms_of(pair, observable)))
    budget = law_of(pair, observable).budget
    return f"{law}; best shapes: P to the power {style.fraction(budget)}" if budget else law


def paragraphs(experiment: Experiment) -> list[str]:
    """Describe the study in paragraphs of plain text."""
    problem, training = experiment.problem, experiment.training
    data = problem.data
    numbers = ", ".join(
        f"{value} {name}"
        for name in ("samples", "tokens", "inputs", "targets", "classes")
        if (value := getattr(data, name, None)) is not None
    )
    blocks = ", followed by ".join(_branch(branch) for branch in experiment.model.branches)
    updates = training.steps - 1
    rule = {"sgd": "gradient descent", "adam": "Adam", "sign": "sign descent"}.get(
        training.rule.kind, training.rule.kind
    )
    momentum = getattr(training.rule, "momentum", 0.0)
    further = [
        f"momentum {momentum:g}" if momentum else "",
        f"weight decay {training.weight_decay:g}" if training.weight_decay else "",
        f"{training.schedule.kind} schedule" if training.schedule.kind != "constant" else "",
        "in batches" if training.batches is not None else "",
    ]
    more = ", ".join(words for words in further if words)
    return [
        f"Each layer of a network is {blocks}. Networks are trained with {rule}"
        f"{f' ({more})' if more else ''} at learning rate "
        f"{training.learning_rate:g}, in the scaling in which the limit exists, for {updates} "
        f"{'update' if updates == 1 else 'updates'} ({training.steps} states, the first before "
        f"any update), on {_DATA.get(data.kind, data.kind)}{f' ({numbers})' if numbers else ''} "
        f"with the loss {problem.loss.replace('_', ' ')}. The embeddings are "
        f"{'trained too' if training.train_embeddings else 'not trained'}.",
        "A network has depth L, hidden width M and embedding dimension D; P = LMD counts its "
        "parameters up to a constant factor. Between a network and its limit at infinite size (the "
        "DMFT limit) lie two other limits, infinite width at finite depth and the Mean ODE of a "
        "given embedding, so that each cause of the distance is measured alone. Networks and "
        "limits share their embedding rows. Limits are solved, not extrapolated: expectations over "
        "units are quasi-Monte Carlo sums (exact for linear units), and their scatter over "
        "independent scramblings gives the standard error.",
        "The distance of hidden states is the root mean square over samples and coordinates in the "
        "last layer; that of outputs is the root mean square over samples and targets. A distance "
        "below ten standard errors of the limits is below resolution: it is used, with that error "
        "in the likelihood of the fits. Networks that diverged are counted, named and left out; "
        "they are never replaced by a number.",
        "Intervals are 95 % intervals. They include the scatter over seeds (a bootstrap over whole "
        "seeds), the limits’ own error, and the scatter of shapes about the law beyond both. Terms "
        "of a distance add as root-sum-square. Predicted amplitudes come from the limit alone, "
        "without any training.",
        "A claim is about large sizes. It is judged on the shapes whose predicted distance from "
        "the limit is small, with the next order of the law fitted as well. It agrees if it lies"
        " in the 95 % interval and the interval is narrow enough: ± 0.1 for an exponent, ± 1/60 "
        "for one in P, ± 10 % for an amplitude. It disagrees if it lies so far outside that, "
        "were all claims true, chance would put any of them that far in at most one study of "
        "twenty (Holm’s method). Otherwise it is undecided, and the reason says what would "
        "decide.",
    ]


def _branch(branch: BranchConfig) -> str:
    unit = branch.unit
    activation = getattr(unit, "activation", None)
    name = {
        "perceptron": f"a perceptron block ({activation})",
        "gated_perceptron": f"a gated perceptron block ({activation})",
        "attention_head": "an attention block"
        + (" (causal)" if getattr(unit, "causal", False) else ""),
        "convolution": f"a convolution over tokens ({activation})",
    }.get(unit.kind, f"a block of kind {unit.kind}")
    return name if branch.norm == "none" else f"{name} behind a norm ({branch.norm})"


def why_undecided(
    experiment: Experiment, rates: Mapping[str, Any], made: Sequence[Made]
) -> list[str]:
    """Say what of the experiment itself keeps claims from being decided, in sentences.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    rates : mapping
        The contents of rates.json.
    made : sequence of Made
        The results of all kinds.
    """
    said = []
    finite = next((one for one in made if one.kind == "finite"), None)
    trained = any("finite" in pair.split("-") for pair in experiment.pairs)
    total = 0 if finite is None else finite.ok + finite.diverged + finite.not_run
    if not trained:
        said.append("This experiment trains no finite network; it compares limits with each other.")
    elif total and finite is not None and finite.diverged == total:
        said.append(f"All {total} finite networks diverged: no claim about them can be judged.")
    elif finite is not None and finite.diverged:
        said.append(
            f"{finite.diverged} of {total} finite networks diverged and are left out of the fits."
        )
    if trained and len(experiment.shapes) == 1:
        said.append("There is only one shape, from which no exponent can be measured.")
    if trained and span([len(experiment.seeds_of(shape)) for shape in experiment.shapes]) == "1":
        said.append("There is only one seed, so the scatter of networks is unknown.")
    if not sum(verdict_counts(rates).values()):
        said.append("No distance in this experiment has a law that can be judged.")
    return said
