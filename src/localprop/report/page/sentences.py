"""What is seen, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from localprop.report.page.anatomy import Anatomy
from localprop.report.page.results import Group, Method
from localprop.report.paired import Difference
from localprop.writing.tables import MIB

# Ratios that differ from 1 by less than this are called equal.
_EQUAL = 0.015


def list_main_sentences(group: Group) -> list[str]:
    """Up to three sentences: the methods that need least memory, least time, and score best."""
    if group.comparison is None:
        return [describe_run(method, is_text=group.is_of_text) for method in group.methods[:3]]
    others = [method for method in group.methods[1:] if method.quality is not None]
    if not others:
        return [describe_run(method, is_text=group.is_of_text) for method in group.methods[:1]]
    sign = 1 if group.is_of_text else -1
    chosen = [
        min(others, key=lambda method: method.peak_ratio or 0),
        min(others, key=lambda method: method.time or 0),
        min(others, key=lambda method: sign * (method.quality or 0)),
    ]
    first = group.methods[0]
    return [
        describe_method(method, first.label, is_text=group.is_of_text)
        for method in {method.letter: method for method in chosen}.values()
    ]


def describe_method(method: Method, baseline: str, *, is_text: bool) -> str:
    """What a method costs and gains beside the plain loop and the baseline, in one sentence.

    As in "greedy() needs 30 % less memory than the plain PyTorch loop, takes 1.29 times as long,
    and scores 3.0 points less than end_to_end() (95 % interval −4.6 to −1.4)."
    """
    parts = [
        f"needs {_describe_memory(method.peak_ratio or 1)} than the plain PyTorch loop",
        _describe_time(method.time or 1),
        _describe_gap(method.gap, baseline, method.seeds, is_text=is_text),
    ]
    if abs((method.peak_ratio or 1) - 1) < _EQUAL:
        parts[0] = "needs as much memory as the plain PyTorch loop"
    return f"{method.label} {parts[0]}, {parts[1]}, and {parts[2]}."


def describe_run(method: Method, *, is_text: bool) -> str:
    """What a single method has reached, in one sentence."""
    epochs = method.config.epochs
    if method.quality is None:
        done = max((len(run.epochs) for run in method.runs), default=0)
        return f"{method.label} has trained {done} of {epochs} epochs."
    score = f"{method.quality:.3f} bits per byte" if is_text else f"{method.quality:.1f} % accuracy"
    plural = "s" if epochs > 1 else ""
    return f"{method.label} reaches {score} on the test data after {epochs} epoch{plural}."


def describe_anatomy(anatomy: Anatomy) -> Iterator[str]:
    """What the charts of a method's step show."""
    table, values = anatomy.table, anatomy.values
    modules, layers = len(table.sizes), sum(table.sizes)
    losses = len(table.losses)
    yield (
        f"{_count(losses, 'loss', 'losses')} train{'s' if losses == 1 else ''} "
        f"{_count(layers, 'layer', 'layers')} in {_count(modules, 'module', 'modules')}."
    )
    peak, resting = values.memory.peak_bytes / MIB, values.memory.resting_bytes / MIB
    yield (
        f"A step peaks at {peak:.1f} MiB, when {values.peak.action} runs; {resting:.1f} MiB of it "
        "stay between steps."
    )
    if anatomy.timeline is not None:
        ranks, idle = anatomy.timeline.ranks, anatomy.timeline.idle_share
        yield f"As a pipeline on {ranks} equal devices, these would wait {idle:.0%} of the time."


def _describe_memory(ratio: float) -> str:
    share = abs(1 - ratio)
    return f"{100 * share:.0f} % {'less' if ratio < 1 else 'more'} memory"


def _describe_time(ratio: float) -> str:
    if abs(ratio - 1) < _EQUAL:
        return "takes as long"
    if ratio < 1:
        return f"takes {100 * (1 - ratio):.0f} % less time"
    return f"takes {ratio:.2f} times as long"


def _describe_gap(gap: Difference | None, baseline: str, seeds: int, *, is_text: bool) -> str:
    if gap is None:
        return "has no difference to show, since a run has failed or is missing"
    if gap.mean == gap.low == gap.high == 0:
        return f"scores the same as {baseline} with every seed"
    digits, unit = (3, "bits per byte") if is_text else (1, "points")
    size, gains = f"{abs(gap.mean):.{digits}f} {unit}", (gap.mean < 0) == is_text
    if is_text:
        scores = f"takes {size} {'less' if gap.mean < 0 else 'more'} than {baseline}"
    else:
        scores = f"scores {size} {'more' if gains else 'less'} than {baseline}"
    if gap.low is None or gap.high is None:
        return f"{scores}, with one seed"
    low, high = (f"{end:+.{digits}f}".replace("-", "−") for end in (gap.low, gap.high))
    interval = f"95 % interval {low} to {high}"
    if gap.verdict:
        return f"{scores} ({interval})"
    return f"{scores}, which {seeds} seeds cannot tell from no difference ({interval})"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def describe_credit(marks: Sequence[tuple[int, int, str]]) -> str:
    """A credit table in words, for those who do not see it.

    Example:
        >>> describe_credit([(0, 0, "trains"), (1, 0, "passes"), (1, 1, "trains")])
        'Loss 0 trains layers 0. Loss 1 trains layers 1 and passes through 0.'
    """
    sentences = []
    for loss in dict.fromkeys(mark[0] for mark in marks):
        own: dict[str, list[int]] = {"trains": [], "passes": []}
        for row, layer, kind in marks:
            if row == loss:
                own[kind].append(layer)
        sentence = f"Loss {loss} trains layers {_span(own['trains'])}"
        if own["passes"]:
            sentence += f" and passes through {_span(own['passes'])}"
        sentences.append(f"{sentence}.")
    return " ".join(sentences)


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "none"
    is_run = layers[-1] - layers[0] == len(layers) - 1
    if is_run:
        return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
