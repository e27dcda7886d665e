"""Verdicts of the sweep, and its table.

Verdicts:

- work: the layers are the blocks, all rules run but for those that need maps or layers that can be
  copied, and all checks hold.
- partial: it runs, but blocks are not found, or fewer modules than four can be made, or a rule is
  refused, or memory is off by more than 5 %.
- refused: BadInput for all rules, before the first step.
- silent: something is wrong and nobody is told.
- crash: something else than BadInput was raised, by whichever rule or check.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
VERDICTS = ("work", "partial", "refused", "silent", "crash", "no time", "not installed")
PARTICULAR = ("contsup", "auglocal", "infopro")
LIBRARIES = (
    "localprop",
    "torch",
    "timm",
    "torchvision",
    "transformers",
    "monai",
    "segmentation-models-pytorch",
    "vit-pytorch",
    "x-transformers",
    "speechbrain",
    "torchaudio",
)
WRONG = 1e-3  # relative errors above this are no rounding
COMPARISONS = ("plain_loop", "wrapping", "standing_still", "predict", "recompute", "heads")
FOUND = 0.8  # of the blocks


def judge(record: Record) -> tuple[str, str]:
    """The verdict of a case, and why."""
    if "not_installed" in record:
        return "not installed", record["not_installed"]
    if "not_built" in record:
        return "not built", record["not_built"]
    crashes, wrong = [*_find_crashes(record)], [*_find_wrong(record)]
    if record.get("ended") == "died":
        crashes.append(f"the process died: {record['error'][-200:]}")
    notes = [*wrong, *crashes, *_find_limits(record), *_find_refusals(record)]
    if wrong:
        verdict = "silent"
    elif crashes:
        verdict = "crash"
    elif not isinstance(record.get("layers"), int):
        verdict, notes = "refused", [_shorten(record.get("layers", "nothing is known"))]
        if record.get("ended") == "no time":
            verdict, notes = "no time", ["before its layers were known"]
    elif not _list_running(record):
        verdict = "no time" if record.get("ended") else "refused"
    else:
        verdict = "partial" if notes else "work"
    if record.get("ended") == "no time" and verdict in ("work", "partial"):
        notes.append(f"no time after {_find_last(record)}")
    return verdict, "; ".join(dict.fromkeys(notes))


def _find_last(record: Record) -> str:
    known = ("seconds", "commit", "verdict", "notes", "ended")
    return [key for key in record if key not in known][-1]


def _list_running(record: Record) -> list[str]:
    return [name for name, found in record.get("rules", {}).items() if found == "ok"]


def _list_findings(record: Record) -> Iterator[tuple[str, Any]]:
    """All that was found, by what was looked at."""
    for key in ("check", "layers", "channels", *COMPARISONS):
        if key in record:
            yield key, record[key]
    for key in ("rules", "gradients", "memory"):
        for name, found in record.get(key, {}).items():
            yield f"{key} {name}", found


def _find_crashes(record: Record) -> Iterator[str]:
    return _group((name, found) for name, found in _list_findings(record) if _is(found, "crash"))


def _find_refusals(record: Record) -> Iterator[str]:
    """Refusals but of rules that not all models suit, and of whether they can be cut."""
    excused = {f"{key} {name}" for key in ("rules", "gradients") for name in PARTICULAR}
    excused |= {"check", "layers"}
    return _group(
        (name, found)
        for name, found in _list_findings(record)
        if _is(found, "refused") and name not in excused
    )


def _is(found: Any, kind: str) -> bool:
    return isinstance(found, str) and found.startswith(kind)


def _group(findings: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What was found, each once, after the names of all that found it."""
    names: dict[str, list[str]] = {}
    for name, found in findings:
        names.setdefault(_shorten(found), []).append(name)
    for found, own in names.items():
        yield f"{', '.join(own)} {found}"


def _find_wrong(record: Record) -> Iterator[str]:
    for name, found in record.get("gradients", {}).items():
        if isinstance(found, dict):
            if not found["error"] <= record.get("rounding", WRONG):
                yield f"gradients of {name} {found['error']:.0e} at {found['where']}"
            if found["one_sided"]:
                yield f"gradients of {name} on one side: {', '.join(found['one_sided'][:3])}"
    for key in ("channels", *COMPARISONS):
        found = record.get(key, "")
        if found.startswith(("off", "changed", "wrong", "mix")):
            yield f"{key} {found}"


def _find_limits(record: Record) -> Iterator[str]:
    layers, blocks = record.get("layers"), record.get("blocks")
    if isinstance(layers, int) and blocks and layers < FOUND * blocks:
        why = f", since {record['no_cuts']}" if record.get("no_cuts") else ""
        yield f"{layers} layers for {blocks} blocks{why}"
    if record.get("modules", 4) < 4 and record["modules"] < (blocks or 4):
        yield f"only {record['modules']} modules"
    for name, found in record.get("memory", {}).items():
        if not isinstance(found, str) and abs(found) > 5:
            yield f"memory of {name} {found:+.1f} %"


def _shorten(text: Any, length: int = 160) -> str:
    own = str(text).replace("|", "/")
    return own if len(own) <= length else f"{own[: length - 3]}..."


# --- the table ------------------------------------------------------------------------------------


def write_report(path: Path, records: dict[str, Record], order: Iterable[str]) -> None:
    """Write the table, and beside it all figures as JSON."""
    known = {name: records[name] for name in order if name in records}
    path.parent.mkdir(parents=True, exist_ok=True)
    about = describe_machine()
    path.with_suffix(".json").write_text(format_figures(about, known), "utf-8")
    lines = [
        "# Models of other libraries",
        "",
        "Written by `benchmarks/models/sweep.py`; benchmarks/README.md describes the columns.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        *_list_counts(known),
        "",
        *_list_families(known),
        *_list_rows(known),
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def format_figures(about: dict[str, str], records: dict[str, Record]) -> str:
    """The figures as JSON, with one line for each case."""
    cases = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in records.items())
    return f'{{"about": {json.dumps(about)},\n"cases": {{\n{cases}\n}}}}\n'


def describe_machine() -> dict[str, str]:
    """The versions, the commit and the machine."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": find_commit(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def find_commit() -> str:
    """The commit of localprop; with "-dirty" where its sources are changed."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def _list_counts(records: dict[str, Record]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {}
    for name, record in records.items():
        counts.setdefault(name.partition(":")[0], Counter())[record["verdict"]] += 1
    yield f"| source | cases | {' | '.join(VERDICTS)} |"
    yield f"|---|---:|{'---:|' * len(VERDICTS)}"
    total: Counter[str] = Counter()
    for source, own in counts.items():
        total.update(own)
        yield _format_counts(source, own)
    yield _format_counts("all", total)


def _list_families(records: dict[str, Record]) -> Iterator[str]:
    """How many of timm's families work, by one of their models or more."""
    families: dict[str, list[str]] = {}
    for record in records.values():
        if record.get("family"):
            families.setdefault(record["family"], []).append(record["verdict"])
    if families:
        work = [name for name, verdicts in families.items() if "work" in verdicts]
        others = ", ".join(sorted(families.keys() - set(work))) or "none"
        yield f"{len(work)} of timm's {len(families)} families work. The others: {others}."
        yield ""


def _format_counts(source: str, counts: Counter[str]) -> str:
    return f"| {source} | {counts.total()} | {' | '.join(str(counts[v]) for v in VERDICTS)} |"


def _list_rows(records: dict[str, Record]) -> Iterator[str]:
    yield "| case | layers | blocks | modules | rules | gradients | loop | memory % | verdict |"
    yield "|---|---:|---:|---:|---:|---|---|---:|---|"
    for name, record in records.items():
        layers = record.get("layers")
        rules = record.get("rules", {})
        cells = [
            name,
            layers if isinstance(layers, int) else "-",
            record.get("blocks") or "-",
            record.get("modules", "-"),
            f"{len(_list_running(record))} of {len(rules)}" if rules else "-",
            _format_gradients(record),
            _shorten(record.get("plain_loop", "-"), 12),
            _format_memory(record),
            f"{record['verdict']}: {record['notes']}" if record["notes"] else record["verdict"],
        ]
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _format_gradients(record: Record) -> str:
    found = [
        each["error"] for each in record.get("gradients", {}).values() if isinstance(each, dict)
    ]
    return f"{len(found)}: {max(found):.0e}" if found else "-"


def _format_memory(record: Record) -> str:
    found = [each for each in record.get("memory", {}).values() if isinstance(each, float)]
    return f"{max(found, key=abs):+.2f}" if found else "-"
