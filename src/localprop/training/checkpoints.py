"""The checkpoints in the directory of a run: the newest ones, the best one, and which one is good.

epoch-00007.safetensors              after 7 epochs
epoch-00007-step-000120.safetensors  after 120 steps of the next one; only the newest is kept
best.safetensors                     the highest validation accuracy, a second name of its file
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.training.checkpoint import NO_LEARNERS, find_nonfinite, join_first, load_file
from localprop.training.state_file import Damaged, StateFile, write_state
from localprop.writing.files import link_file

_BEST = "best.safetensors"
_NAME = re.compile(r"epoch-(?P<epoch>\d+)(?:-step-(?P<step>\d+))?\.safetensors")
# The only checkpoint of runs before checkpoints had hashes.
_OLD = "last.pt"

Place = tuple[int, int]  # epochs done, and steps of the next one


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: the folder.
        keep: how many of the newest to keep. One that is best, and the newest one without NaN, are
            kept besides.

    Attributes:
        skipped: why newer checkpoints than the one of `restore` could not be taken, one sentence
            for each.

    Example:
        >>> checkpoints = Checkpoints(Path("runs/first"), keep=2)
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.skipped: list[str] = []
        self._finite: Path | None = None  # the newest one that is known to have no NaN

    def list_all(self) -> list[Path]:
        """All files that may be checkpoints."""
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except OSError:
            return []
        known = [name for name in names if _NAME.fullmatch(name) or name in (_BEST, _OLD)]
        return [self.folder / name for name in known]

    def save(self, content: Mapping[str, Any], place: Place, *, is_best: bool) -> None:
        """Write a checkpoint, and remove those that are no longer needed.

        Raises:
            RunFailed: it cannot be written. All others are then unchanged.
        """
        epoch, step = place
        name = f"epoch-{epoch:05}" + (f"-step-{step:06}" if step else "")
        path = self.folder / f"{name}.safetensors"
        nonfinite = find_nonfinite(content)
        write_state(path, {**content, "nonfinite": nonfinite})
        if not nonfinite:
            self._finite = path
        self.settle(place, is_best=is_best)

    def settle(self, place: Place, *, is_best: bool) -> None:
        """Let the name of the best stand for the newest checkpoint if it is, and remove old ones.

        Args:
            place: of the newest, which was saved or restored.
            is_best: whether it is the best so far.
        """
        if is_best and self._finite is not None and _place_of(self._finite) == place:
            link_file(self._finite, self.folder / _BEST)
        self._prune(place)

    def _prune(self, place: Place) -> None:
        """Remove old checkpoints, and those that the run has gone back behind."""
        places = {path: found for path in self.list_all() if (found := _place_of(path))}
        whole = sorted(found for found in places.values() if found[1] == 0 and found <= place)
        kept = {place, *whole[-self.keep :]}
        for path, found in places.items():
            if found not in kept and path != self._finite:
                path.unlink(missing_ok=True)

    def find(self) -> StateFile | None:
        """Find the newest checkpoint whose manifest is whole; None without any.

        Example:
            >>> Checkpoints(Path("runs/first"), keep=2).find()
        """
        return next(iter(self._open_all()), None)

    def _open_all(self) -> list[StateFile]:
        """Open all, the newest first, but those with NaN or infinity last."""
        files = []
        self.skipped = []
        for path in self.list_all():
            try:
                file = StateFile(path)
            except BadInput as error:
                self.skipped += error.problems
                continue
            if {"run", "nonfinite"} <= file.about.keys():
                files.append(file)
            else:
                self.skipped.append(f"{path} is of lp.save, not of a run.")
        files.sort(key=lambda file: (not file.about["nonfinite"], _rank(file)), reverse=True)
        return files

    def restore(
        self, learner: Learner, others: Mapping[str, Learner] = NO_LEARNERS
    ) -> dict[str, Any] | None:
        """Restore learners from the newest good checkpoint.

        Returns:
            The content of the file; None if there are no files.

        Raises:
            BadInput: no file is good, or the newest good one is of another learner.
        """
        files = self._open_all()
        for file in files:
            try:
                content = load_file(file, learner, others)
            except Damaged as error:
                self.skipped += error.problems
                continue
            self._note_poisoned(files, file)
            if not content["nonfinite"]:
                self._finite = file.path
            return content
        if self.skipped:
            raise BadInput(
                [*self.skipped, "No other checkpoint is left: start the run anew with --overwrite."]
            )
        return None

    def _note_poisoned(self, files: list[StateFile], taken: StateFile) -> None:
        for file in files:
            poisoned = file.about["nonfinite"]
            if poisoned and _rank(file) >= _rank(taken):
                self.skipped.append(
                    f"{file.path} has NaN or infinity in {join_first(poisoned)}"
                    + (", and no other checkpoint is left." if file is taken else ".")
                )


def _place_of(path: Path) -> Place | None:
    match = _NAME.fullmatch(path.name)
    return (int(match["epoch"]), int(match["step"] or 0)) if match else None


def _rank(file: StateFile) -> Place:
    partial = file.about["run"]["partial"]
    return file.about["epoch"], partial["step"] if partial else 0
