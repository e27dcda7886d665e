"""What the modules of finished runs have learned: analysis.json beside the files of each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from localprop.analysis import compare_gradients, compare_representations, probe
from localprop.arguments import check_arguments
from localprop.data import Batches
from localprop.errors import BadInput, check, collect_problems
from localprop.learner import Learner
from localprop.methods.baselines import EndToEndCredit
from localprop.methods.parse import parse_rule
from localprop.report.comparison_directory import RESULT_FILE, ComparisonDirectory
from localprop.training.config import OF_EVALUATION, Config
from localprop.training.deploy import load_run
from localprop.training.run_directory import CONFIG_FILE, METRICS_FILE, RunDirectory
from localprop.writing.files import to_json, write_text

__all__ = ["analyse"]

ANALYSIS_FILE = "analysis.json"
# Fields that say where and how the data are read.
OF_ANALYSIS = tuple(name for name in OF_EVALUATION if name != "data")

_Found = TypeVar("_Found")


@check_arguments
def analyse(
    results: str | Path | Sequence[str | Path],
    *,
    rows: int = 10_000,
    on_progress: Callable[[str], object] = lambda line: None,
    **fields: Any,
) -> dict[str, Any]:
    """Look at what the modules of runs have learned, as `localprop analyse` does.

    Each run gets an analysis.json beside its files: a linear probe of each module, fitted to
    training data and scored on test data; the CKA of each module with those of the end-to-end run
    among the results, if there is one, on test data; and the cosine of each layer's gradient with
    the end-to-end one, on the first training batch. Data are neither augmented nor, but for one
    order of the training data that the seed of the run draws, shuffled. `write_report` shows them.

    Args:
        results: directories of `train` and `compare`.
        rows: rows, or samples, of each split that are read at most.
        on_progress: called with what is being done.
        **fields: `root`, `download`, `batch_size`, `device` and `workers`.

    Returns:
        The analyses of "runs", the "files", and "table", the tables in words.

    Raises:
        BadInput: there is no such run, it has no checkpoint, a field is unknown, or the data are
            absent.
        RunFailed: a file cannot be written.

    Example:
        >>> import localprop as lp
        >>> _ = lp.train(model="mlp", epochs=2, limit=200, out="runs/e")
        >>> found = lp.analyse("runs/e")["runs"][0]
        >>> len(found["probe"]["scores"]), found["representations"]
        (3, None)
    """
    problems = [f"rows={rows} must be 1 or more."] if rows < 1 else []
    problems += [
        f"There is no field {name!r} here: choose one of {', '.join(OF_ANALYSIS)}."
        for name in fields
        if name not in OF_ANALYSIS
    ]
    runs: list[_Run] = []
    for path in [results] if isinstance(results, str | Path) else results:
        with collect_problems(problems):
            runs += _list_runs(Path(path).expanduser())
    check(problems)
    runs = list({run.path.resolve(): run for run in runs}.values())
    analyses, tables = [], []
    for run in runs:
        on_progress(f"looking at {run.path}")
        analysis, table = _analyse_run(run, _find_end_to_end(run, runs), rows, fields)
        write_text(run.path / ANALYSIS_FILE, to_json(analysis))
        analyses.append(analysis)
        tables.append(f"{run.path}\n\n{table}")
    files = [str(run.path / ANALYSIS_FILE) for run in runs]
    return {
        "files": files,
        "runs": analyses,
        "table": "\n\n".join([*tables, "\n".join(f"Written: {file}" for file in files)]),
    }


def read_analysis(folder: Path, config: Config) -> dict[str, Any] | None:
    """The analysis of a run; None if there is none, or the directory had another run then.

    Args:
        folder: of the run.
        config: of the run that is there now.

    Raises:
        BadInput: the file is damaged.

    Example:
        >>> read_analysis(Path("runs/nothing"), config)
    """
    file = folder / ANALYSIS_FILE
    if not file.is_file():
        return None
    try:
        values: Any = json.loads(file.read_text("utf-8"))
        known = {"config", "epochs", "probe", "representations", "gradients", "notes"}
        if not isinstance(values, dict) or not known <= values.keys():
            raise ValueError("it holds no analysis")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{file} cannot be read ({error}): remove it, or run localprop analyse again."
        ) from error
    return values if values["config"] == json.loads(to_json(config.as_json())) else None


@dataclass(frozen=True)
class _Run:
    """A run with a checkpoint."""

    path: Path
    config: Config

    @property
    def is_end_to_end(self) -> bool:
        credit = parse_rule(self.config.first_method).credit
        return not self.config.phases and isinstance(credit, EndToEndCredit)

    def count_epochs(self) -> int:
        file = self.path / METRICS_FILE
        return len(file.read_text("utf-8").splitlines()) if file.is_file() else 0


def _list_runs(path: Path) -> Iterator[_Run]:
    """The run in a directory, or those of the comparison there that have begun.

    Raises:
        BadInput: there is none, or one has no checkpoint.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is no directory: name that of compare --out or of train --out.")
    folders = [path]
    if (path / RESULT_FILE).is_file():
        named = ComparisonDirectory(path).list_folders()
        folders = [folder for folder in named if (folder / CONFIG_FILE).is_file()]
        if not folders:
            raise BadInput(f"{path} has no run that has begun: run localprop compare --out again.")
    for folder in folders:
        directory = RunDirectory(folder, writes=False)
        config = directory.read_config()
        if not directory.has_checkpoint():
            raise BadInput(f"{folder} has no checkpoint yet: let the run finish an epoch.")
        yield _Run(folder, config)


def _find_end_to_end(run: _Run, runs: Iterable[_Run]) -> _Run | None:
    """The end-to-end run of the same model and data, if possible with the same seed."""
    found = [
        each
        for each in runs
        if each.is_end_to_end
        and (each.config.model, each.config.data) == (run.config.model, run.config.data)
    ]
    same = [each for each in found if each.config.seed == run.config.seed]
    return next(iter([*same, *found]), None)


def _analyse_run(
    run: _Run, whole: _Run | None, rows: int, fields: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """The content of a run's analysis.json, and its tables."""
    config, dataset, learner = load_run(run.path, **fields)
    train = Batches(
        dataset,
        "train",
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        device=learner.device,
    )
    test = Batches(dataset, "test", config.batch_size, device=learner.device)
    notes: list[str] = []

    def attempt(look: Callable[[], _Found]) -> _Found | None:
        try:
            return look()
        except BadInput as error:
            notes.extend(error.problems)
            return None

    other: Learner | None = None
    if whole is not None:
        # Its data are not read again: a learner takes their shape alone.
        other = learner if whole is run else load_run(whole.path, lambda _: dataset, **fields)[2]
    else:
        notes.append("No run was trained end to end, to compare representations with.")
    probes = attempt(lambda: probe(learner, train, test, limit=rows))
    similarity = other and attempt(
        lambda: compare_representations(learner, other, test, limit=rows)
    )
    gradients = attempt(lambda: compare_gradients(learner, next(iter(train))))
    analysis = {
        "config": run.config.as_json(),
        "epochs": run.count_epochs(),
        "probe": probes and asdict(probes),
        "representations": similarity and asdict(similarity),
        "end_to_end": None if whole is None else str(whole.path),
        "gradients": gradients and asdict(gradients),
        "notes": notes,
    }
    tables = [str(each) for each in (probes, similarity, gradients) if each is not None]
    return analysis, "\n\n".join([*tables, *notes])
