"""The commands as functions: `localprop train ...` is `lp.train(...)`.

The flags of a command are the arguments here, and its flags for fields of `Config` are keywords.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from localprop import experiments
from localprop.arguments import check_arguments
from localprop.errors import check, collect_problems
from localprop.experiments import Recipe
from localprop.experiments.blank_data import load_shape
from localprop.loggers.read import Log
from localprop.ranks.launch import get_rank, get_world_size
from localprop.report.compare import ShowProgress as ShowRuns
from localprop.report.compare import hide_progress as hide_runs
from localprop.report.compare import run_compare
from localprop.report.method_spec import Methods
from localprop.report.tasks import find_task
from localprop.training import deploy, run
from localprop.training.build import load_data
from localprop.training.config import OF_EVALUATION, Config
from localprop.training.config_file import read_config_file
from localprop.training.idle_flags import check_flags
from localprop.training.plan_file import read_plan
from localprop.training.run import ShowProgress, hide_progress
from localprop.training.trainer import EpochReport, OnEpoch, OnStep
from localprop.writing.charts import check_path
from localprop.writing.terminal import print_text

# Fields that each method of a comparison has of its own.
OF_METHODS = ("method", "recompute", "offload", "phases")

__all__ = ["compare", "evaluate", "export", "recipes", "train", "write_report"]


@check_arguments
def train(
    recipe: str | Recipe | None = None,
    *,
    plan: str | Path | None = None,
    config: str | Path | None = None,
    out: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep: int = 2,
    log: Log = (),
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    show_progress: ShowProgress = hide_progress,
    on_note: Callable[[str], object] = print_text,
    **fields: Any,
) -> dict[str, Any]:
    """Train a network and measure it on test data, as `localprop train` does.

    Args:
        recipe: a published experiment, or its name (see `recipes`); `fields` override its values.
        plan: a file of `Plan.save`, whose best way is taken: method, modules, recompute and
            micro-batches, and the model, batch size, optimizer and precision that it was made for.
            Fields that contradict it are refused.
        config: a file of fields, .toml or the config.json of a run; `fields` override its values.
        out: the directory for config, metrics, checkpoint and summary, or None.
        resume: continue the run in `out`, with its config.
        overwrite: replace the run in `out`.
        keep: how many of the newest checkpoints to keep in `out`; the best one by validation is
            kept besides, as best.safetensors.
        log: a logger, or several: functions of a record (a dictionary, which `localprop.loggers`
            describes), "csv:FILE" or "tensorboard:FOLDER". Called at the start, after each epoch
            and its checkpoint, and at the end; on several ranks by rank 0. One that fails is told
            by `on_note`, and the run goes on without it.
        on_epoch: called with the `EpochReport` after each epoch. What it raises ends the run.
        on_step: called after each step with the epoch, the steps done in it, and those that it has.
        show_progress: takes the config and the epochs done before; a context manager whose value is
            such a pair of functions.
        on_note: called before the first step with each value of a recipe that had to change, and
            with each argument of the method that has no effect on this network.
        **fields: fields of `Config`, which `help(lp.Config)` lists. `method` is a `Rule` or text.

    Returns:
        The summary: config, rule, accuracies and losses, every epoch, parameters and seconds.

    Raises:
        BadInput: the values, the recipe, the directory, or a field that is unknown.
        RunFailed: a loss is not finite, the disk is full, or a logger fails at the start.
        RunStopped: the process got SIGTERM or SIGHUP; the run in `out` can be resumed.
        StepFailed: a step stopped half-way.

    Example:
        >>> import localprop as lp
        >>> summary = lp.train(model="mlp", method=lp.greedy(), epochs=2, limit=200)
        >>> len(summary["epochs"])
        2
    """
    _check_fields(fields)
    name = recipe.name if isinstance(recipe, Recipe) else recipe
    info = experiments.recipe_info(name, fields)
    chosen, load_dataset = fields, load_data
    tell = on_note if get_rank() == 0 else lambda line: None
    if config is not None:
        check(_find_config_problems(config, name, plan, resume=resume))
        chosen = experiments.override(read_config_file(config), fields, tell)
        check_flags(fields, Config(**chosen))
    elif plan is not None:
        check(_find_plan_problems(plan, name, resume=resume))
        saved = read_plan(plan)
        chosen = saved.merge(fields)
        load_dataset = lambda config: saved.check_data(load_data(config))  # noqa: E731
        check_flags(fields, Config(**chosen))
    elif not resume:  # a resumed run has its own values for the other fields
        chosen = experiments.fields_of(name, fields, tell)
        check_flags(fields, Config(**chosen))
    return run.run(
        chosen,
        out=out,
        resume=resume,
        overwrite=overwrite,
        keep=keep,
        log=log,
        recipe={key: info[key] for key in ("recipe", "replaced") if key in info},
        show_progress=_add_callbacks(show_progress, on_epoch, on_step),
        on_note=on_note,
        load_dataset=load_dataset,
    )


@check_arguments
def compare(
    methods: Methods | None = None,
    *,
    task: str = "images",
    config: str | Path | None = None,
    seeds: int = 3,
    rounds: int = 15,
    out: str | None = None,
    overwrite: bool = False,
    log: Log = (),
    show_progress: ShowRuns = hide_runs,
    on_note: Callable[[str], object] = print_text,
    report: Callable[[str], object] = print_text,
    **fields: Any,
) -> dict[str, Any]:
    """Train methods side by side, as `localprop compare` does.

    Args:
        methods: rules and texts such as "backlink(layers=2)", "end_to_end() with recompute" or
            "LABEL: Rule(...)"; or a mapping from labels to such. By default every method of the
            task that can train the network.
        task: "images" or "lm", whose values hold for fields that are not given.
        config: a file of fields, .toml or the config.json of a run, whose values hold instead of
            those of the task. Its method does not count. Where it holds out no data for validation,
            as most recipes do, a tenth is held out here, so that there are curves.
        seeds: runs of each method.
        rounds: interleaved rounds of the timing.
        out: the directory for compare.json and the runs, or None. A comparison that was stopped
            goes on there.
        overwrite: replace the comparison in `out`.
        log: loggers, as for `train`, of all runs. Their records have the name of the `run`, too.
        show_progress: takes the number of epochs of all runs; a context manager whose value is
            called with what is running, and with the number of epochs finished since the last call.
        on_note: called before the first run with each argument of a method that has no effect on
            this network, and with methods that are one and the same here.
        report: called with the table so far if the comparison ends early or a run fails.
        **fields: fields of `Config`, but for `method`, `recompute`, `offload` and `phases`.

    Returns:
        The figures, and the table's text as "table".

    Raises:
        BadInput: all problems with values, data, methods and directory.
        RunFailed: a run failed, after all others have finished; or a file cannot be written.
        RunStopped: the process got SIGTERM or SIGHUP; the run in progress is saved in `out`.

    Example:
        >>> import localprop as lp
        >>> methods = {"global": "end_to_end()", "mine": lp.greedy()}
        >>> result = lp.compare(methods, model="mlp", epochs=2, limit=200, seeds=1, rounds=2)
        >>> [row["method"] for row in result["rows"]]
        ['global', 'mine']
    """
    _check_fields(fields, without=OF_METHODS)
    chosen = find_task(task)
    shared = {**chosen.fields, **fields}
    if config is not None:
        values = read_config_file(config)
        if values.get("validation") == 0:
            on_note(f"{config} has validation=0: {Config.validation} of the images is held out.")
            del values["validation"]
        values = {name: value for name, value in values.items() if name not in OF_METHODS}
        shared = experiments.override(values, fields, on_note)
    of_all = Config(**shared)
    check_flags(fields, of_all)
    return run_compare(
        of_all,
        chosen.methods if methods is None else methods,
        seeds=seeds,
        rounds=rounds,
        out=out,
        overwrite=overwrite,
        log=log,
        strict=methods is not None,
        show_progress=show_progress,
        on_note=on_note,
        report=report,
    )


@check_arguments
def export(run: str | Path, *paths: str | Path) -> dict[str, Any]:
    """Write the deployed network of a run to files, as `localprop export` does.

    The network is in evaluation mode and on the CPU. It has the encoders of a method with context,
    and no heads.

    Args:
        run: the directory of a run.
        *paths: files by their endings: .pt (a state_dict of torch.save), .safetensors, .pt2
            (torch.export, which plain PyTorch runs, for any number of samples) or .onnx.

    Returns:
        The shape of an input, how pixels become inputs ("mean", "std"), the files, and "table",
        these in words.

    Raises:
        BadInput: there is no such run, a file has another ending, a package is not installed, or
            torch cannot export the network.
        RunFailed: a file cannot be written.

    Example:
        >>> import localprop as lp
        >>> _ = lp.train(model="mlp", epochs=2, limit=200, out="runs/a")
        >>> lp.export("runs/a", "network.pt")["files"]
        ['network.pt']
    """
    problems: list[str] = []
    files: list[Path] = []
    for path in paths:
        with collect_problems(problems):
            files.append(check_path(path, deploy.FORMATS))
    problems += deploy.find_format_problems(files)
    with collect_problems(problems):
        config, dataset, learner = deploy.load_run(run, load_shape, device="cpu")
    check(problems)
    inputs, _ = dataset.make_zero_batch(2)
    for file in files:
        deploy.export_network(learner, inputs, file)
    return deploy.describe_export(config, learner, dataset, files)


@check_arguments
def evaluate(run: str | Path, **fields: Any) -> dict[str, Any]:
    """Measure the deployed network of a run on test data, as `localprop evaluate` does.

    Args:
        run: the directory of a run.
        **fields: `data`, other data of the same shape and classes, which are normalised as those of
            the training; `root`, `download`, `batch_size`, `device` and `workers`.

    Returns:
        Accuracy and loss of the network, and of each module whose head makes outputs: those of an
        early exit, `learner.predict(x, module=k)`; and "table", the table's text.

    Raises:
        BadInput: there is no such run, a field is unknown, or the data are absent or do not fit.
        RunFailed: a loss is not finite.

    Example:
        >>> import localprop as lp
        >>> summary = lp.train(model="mlp", epochs=2, limit=200, out="runs/b")
        >>> lp.evaluate("runs/b")["test_accuracy"] == summary["test_accuracy"]
        True
    """
    others = [f.name for f in dataclasses.fields(Config) if f.name not in OF_EVALUATION]
    _check_fields(fields, without=others)
    return deploy.score_run(run, fields)


@check_arguments
def write_report(
    results: str | Path | Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    on_progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Write a page of results, as `localprop report` does.

    The page is one HTML file that needs no network: the front of accuracy, bytes and time, curves
    of each module, and of each method its credit table, what is alive in a step, and a pipeline.
    CSV, Markdown, LaTeX and PNG lie beside it.

    Args:
        results: directories of `compare` and `train`, or files of `localprop compare --json`.
        out: the page, which ends in .html.
        on_progress: called with what is being done.

    Returns:
        The files, and "table", these in words.

    Raises:
        BadInput: there is no result, a file is damaged, or a package is not installed.
        RunFailed: a file cannot be written.

    Example:
        >>> import localprop as lp
        >>> _ = lp.train(model="mlp", epochs=2, limit=200, out="runs/d")
        >>> lp.write_report("runs/d", "page.html")["files"][:2]
        ['page.html', 'page.csv']
    """
    from localprop.report.page.write import write_page

    files = write_page([results] if isinstance(results, str | Path) else results, out, on_progress)
    lines = [f"Written: {file}" for file in files]
    return {"files": [str(file) for file in files], "table": "\n".join(lines)}


@check_arguments
def recipes(word: str = "") -> list[Recipe]:
    """The published experiments whose names contain a word; all of them by default.

    Example:
        >>> import localprop as lp
        >>> [recipe.name for recipe in lp.recipes("vgg19_imagenet_dgl_k")]
        ['vgg19_imagenet_dgl_k2', 'vgg19_imagenet_dgl_k4']
    """
    return [experiments.find(name) for name in experiments.names(word)]


def _find_plan_problems(plan: str | Path, recipe: str | None, *, resume: bool) -> Iterator[str]:
    """What cannot be trained by a plan."""
    if recipe is not None:
        yield f"The recipe {recipe} and plan={str(plan)!r} both name a method: leave one out."
    if resume:
        yield f"plan={str(plan)!r}, but a resumed run goes on as it began: leave the plan out."
    if get_world_size() > 1:
        yield f"plan={str(plan)!r} is for one process: start without torchrun."


def _find_config_problems(
    config: str | Path, recipe: str | None, plan: str | Path | None, *, resume: bool
) -> Iterator[str]:
    """What cannot be trained by the config of a file."""
    given = f"config={str(config)!r}"
    if recipe is not None:
        yield f"The recipe {recipe} and {given} both name a run: leave one out."
    if plan is not None:
        yield f"plan={str(plan)!r} and {given} both name a run: leave one out."
    if resume:
        yield f"{given}, but a resumed run goes on as it began: leave the file out."


def _check_fields(names: Iterable[str], without: Iterable[str] = ()) -> None:
    """Refuse names that are no fields of `Config`.

    Args:
        names: what was given.
        without: fields that do not count here.

    Raises:
        BadInput: with close matches.
    """
    known = [field.name for field in dataclasses.fields(Config) if field.name not in without]
    problems = []
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
            problems.append(f"There is no field {name!r} here: {hint}")
    check(problems)


def _add_callbacks(
    show_progress: ShowProgress, on_epoch: OnEpoch | None, on_step: OnStep | None
) -> ShowProgress:
    """Call the user's functions before those that show the progress."""

    @contextmanager
    def show(config: Config, done: int) -> Iterator[tuple[OnEpoch, OnStep | None]]:
        with show_progress(config, done) as (show_epoch, show_step):

            def after_epoch(report: EpochReport) -> None:
                if on_epoch is not None:
                    on_epoch(report)
                show_epoch(report)

            def after_step(epoch: int, step: int, steps: int) -> None:
                for each in (on_step, show_step):
                    if each is not None:
                        each(epoch, step, steps)

            yield after_epoch, after_step if on_step or show_step else None

    return show
