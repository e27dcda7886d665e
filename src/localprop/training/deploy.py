"""A run after its training: its learner again, its network as files, and its figures."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localprop.data import Batches, Dataset, is_text
from localprop.data.sources import TORCHVISION
from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.models.libraries import import_library
from localprop.training.build import build_phase_schedule, load_data, prepare
from localprop.training.config import Config
from localprop.training.exits import list_figures, score_exits
from localprop.training.run_directory import RunDirectory
from localprop.training.scores import Score
from localprop.user_code import describe_error
from localprop.writing.files import write_bytes
from localprop.writing.tables import format_table


def load_run(
    path: str | Path,
    load_dataset: Callable[[Config], Dataset] = load_data,
    **changed: Any,
) -> tuple[Config, Dataset, Learner]:
    """Load the learner of a run from its checkpoint.

    Args:
        path: the directory of the run.
        load_dataset: loads the data set of a config, of which the shape counts.
        **changed: fields of the config to change.

    Raises:
        BadInput: there is no run or no checkpoint, a file is damaged, or the data are absent.

    Example:
        >>> import localprop as lp
        >>> _ = lp.train(model="mlp", epochs=2, limit=200, out="runs/a")
        >>> config, dataset, learner = load_run("runs/a")
        >>> config.model
        'mlp'
    """
    directory = RunDirectory(path, writes=False)
    config = replace(directory.read_config(), **{"device": "auto", **changed})
    if not directory.has_checkpoint():
        raise BadInput(f"{path} has no checkpoint yet: let the run finish an epoch.")
    dataset, learner = prepare(config, load_dataset, weights=False)
    phases = build_phase_schedule(config, dataset, learner)
    directory.restore(learner, phases.others)
    check(
        f"{each} `localprop train --out {path} --resume` goes on from an older one."
        for each in directory.skipped
    )
    return config, dataset, learner


# --- export ---------------------------------------------------------------------------------------


def _write_state(network: nn.Module, inputs: Tensor) -> bytes:
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    return content.getvalue()


def _write_safetensors(network: nn.Module, inputs: Tensor) -> bytes:
    # Tied parameters, which the format does not know, become two.
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    content: bytes = import_library("safetensors.torch").save(tensors)
    return content


def _trace(network: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    shapes[inputs] = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(network, (inputs,), dynamic_shapes=shapes)


def _write_program(network: nn.Module, inputs: Tensor) -> bytes:
    content = io.BytesIO()
    torch.export.save(_trace(network, inputs), content)
    return content.getvalue()


def _write_onnx(network: nn.Module, inputs: Tensor) -> bytes:
    program: Any = torch.onnx.export(_trace(network, inputs), dynamo=True, verbose=False)
    content: bytes = program.model_proto.SerializeToString()
    return content


# How the network is written, by the ending of the file's name.
_WRITERS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {
    ".pt": _write_state,
    ".safetensors": _write_safetensors,
    ".pt2": _write_program,
    ".onnx": _write_onnx,
}
FORMATS = tuple(_WRITERS)


def find_format_problems(paths: Collection[Path]) -> Iterator[str]:
    """The packages that the formats of some files need and that are not installed."""
    needed = {".safetensors": ["safetensors.torch"], ".onnx": ["onnx", "onnxscript"]}
    for package in dict.fromkeys(name for p in paths for name in needed.get(p.suffix, ())):
        try:
            import_library(package)
        except BadInput as error:
            yield from error.problems


def export_network(learner: Learner, inputs: Tensor, path: Path) -> None:
    """Write the deployed network of a learner, in evaluation mode, to a file.

    Args:
        learner: whose network is written, with the encoders of its contexts.
        inputs: an example (N, ...) with N >= 2; networks in .pt2 and .onnx take any N.
        path: ends in .pt (a state_dict), .safetensors, .pt2 (torch.export) or .onnx.

    Raises:
        BadInput: torch cannot export this network in the format.
        RunFailed: the file cannot be written.

    Example:
        >>> export_network(learner, torch.zeros(2, 1, 8, 8), Path("network.pt"))
    """
    network = deepcopy(learner.network).cpu().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    try:
        content = _WRITERS[path.suffix](network, inputs.cpu())
    except Exception as error:  # a network that torch cannot trace may raise anything
        raise BadInput(
            f"The network cannot be exported as {path.name} ({describe_error(error)}): a "
            "state_dict, .pt or .safetensors, is always possible."
        ) from error
    write_bytes(path, content)


def describe_export(
    config: Config, learner: Learner, dataset: Dataset, files: Collection[Path]
) -> dict[str, Any]:
    """What a network takes, and what plain PyTorch can do with the files.

    Args:
        config: of the run.
        learner: of the run.
        dataset: in the shape of its data. Of data that a name stands for, only the usual
            normalization is known here, and not one that is measured.
        files: that were written.
    """
    is_named = config.mean is None and config.data in TORCHVISION
    usual = TORCHVISION[config.data][-1] if is_named else dataset.normalization
    takes = f"The network takes inputs (N, {', '.join(map(str, dataset.shape))})"
    if is_named and usual is None:
        takes += f", normalised by mean and standard deviation of {config.data}'s training images"
    elif usual is not None:
        takes += f", (pixel - {usual.mean}) / {usual.std} of pixels in 0..1"
    lines = [f"{takes}.", *(f"Written: {file}" for file in files)]
    if len(learner.encoders) and any(file.suffix in (".pt", ".safetensors") for file in files):
        lines.append(
            "The state_dict has the model as `model.` and the encoders of its contexts as "
            "`encoders.`, without which it predicts nothing: `lp.Learner(...).network` takes both. "
            "A .pt2 file runs in plain PyTorch."
        )
    return {
        "input_shape": dataset.shape,
        "mean": usual and usual.mean,
        "std": usual and usual.std,
        "files": [str(file) for file in files],
        "table": "\n".join(lines),
    }


# --- figures --------------------------------------------------------------------------------------


def score_run(path: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Score the deployed network of a run, and its early exits, on the test split.

    Args:
        path: the directory of the run.
        given: fields of `OF_EVALUATION`. Other data are normalised as those of the training.

    Returns:
        Accuracy and loss of the network and of each module that has an exit, and a table.

    Raises:
        BadInput: there is no such run, the data are absent, or do not fit the network.
        RunFailed: the loss is not finite.

    Example:
        >>> import localprop as lp
        >>> summary = lp.train(model="mlp", epochs=2, limit=200, out="runs/c")
        >>> score_run("runs/c", {})["test_accuracy"] == summary["test_accuracy"]
        True
    """
    changed = {name: value for name, value in given.items() if name != "data"}
    config, dataset, learner = load_run(path, **changed)
    if given.get("data", config.data) != config.data:
        dataset = _load_other_data(replace(config, data=given["data"]), dataset)
    batches = Batches(dataset, "test", config.batch_size, device=learner.device)
    scores = score_exits(learner, batches)
    if not all(torch.isfinite(torch.tensor(score.loss)) for score in scores.values()):
        raise RunFailed("A loss on the test split is not finite: train again with a lower lr.")
    return _collect_figures(dataset, learner, scores)


def _load_other_data(config: Config, trained_on: Dataset) -> Dataset:
    usual = trained_on.normalization
    if is_text(config.data) != (usual is None):
        raise BadInput(
            f"data={config.data!r}, but the run was trained on {trained_on.unit}: name data of the "
            "same kind."
        )
    mean, std = (None, None) if usual is None else usual
    plain: dict[str, Any] = {"augment": None, "padding": None, "crop_pad": None, "limit": None}
    dataset = load_data(replace(config, mean=mean, std=std, **plain))
    problems = []
    if dataset.shape != trained_on.shape:
        problems.append(
            f"The inputs of {config.data} are {dataset.shape}, and those that the run was trained "
            f"on {trained_on.shape}: resize them."
        )
    here, there = (_classes_of(each) for each in (dataset, trained_on))
    if here != there:
        problems.append(
            f"The classes of {config.data} are {_shorten(here)}, and those that the run was "
            f"trained on {_shorten(there)}: use data with the same classes, in this order."
        )
    check(problems)
    return dataset


def _classes_of(dataset: Dataset) -> tuple[str, ...]:
    numbered = tuple(map(str, range(dataset.num_classes)))
    return tuple(getattr(dataset, "classes", numbered))


def _shorten(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _collect_figures(
    dataset: Dataset, learner: Learner, scores: Mapping[int, Score]
) -> dict[str, Any]:
    rows = list_figures(learner, scores)
    *_, network = scores.values()
    cells = [
        [str(row["module"]), str(row["end"]), f"{s.accuracy:.4f}", f"{s.loss:.4f}"]
        for row, s in zip(rows, scores.values(), strict=True)
    ]
    cells[-1][0] += " (the network)"
    return {
        "data": dataset.name,
        "samples": len(dataset.test),
        "test_accuracy": network.accuracy,
        "test_loss": network.loss,
        "modules": rows,
        "table": format_table(["module", "ends at", "test accuracy", "test loss"], cells),
    }
