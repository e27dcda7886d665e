"""A log for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from localprop.errors import BadInput
from localprop.loggers.safe_logger import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes each number of an epoch as a scalar, over the epochs, and the config as a text.

    What earlier events tell of the epochs that are to come is hidden: of all epochs by a new run,
    and by a resumed one of those after its checkpoint. Each run of `compare` has a folder below.

    Args:
        folder: what `tensorboard --logdir` is given.

    Raises:
        BadInput: tensorboard is not installed, or the folder cannot be written.

    Example:
        >>> log = TensorBoard("runs/board")
        >>> log({"kind": "start", "epoch": 0, "config": {"lr": 0.1}})
        >>> log({"kind": "epoch", "epoch": 1, "step": 10, "lr": 0.1, "loss/0": 2.5})
        >>> log({"kind": "end", "outcome": "finished", "test_accuracy": 0.9})
        >>> len(list(Path("runs/board").iterdir()))
        1
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self._writer: SummaryWriter | None = None
        self._epoch = 0
        paths = (self.folder, *self.folder.absolute().parents)
        existing = next(each for each in paths if os.path.lexists(each))
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise BadInput(f"{existing} is not a writable directory: choose another folder.")
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise BadInput(
                f"tensorboard cannot be imported ({error}): pip install 'localprop[tensorboard]'."
            ) from error

    def __repr__(self) -> str:
        return f"TensorBoard({str(self.folder)!r})"

    def __call__(self, record: Record) -> None:
        """Take a record of a run.

        Raises:
            OSError: the events cannot be written.
        """
        if record["kind"] == "start":
            self._start(record)
            return
        assert self._writer is not None, "a run begins with a record of the kind 'start'"
        self._epoch = record.get("epoch", self._epoch)
        for key, value in record.items():
            if isinstance(value, int | float) and key != "epoch":
                self._writer.add_scalar(key, value, self._epoch)
        self._writer.flush()
        if record["kind"] == "end":
            self._writer.close()

    def _start(self, record: Record) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._epoch = record["epoch"]
        folder = self.folder / record.get("run", "")
        self._writer = SummaryWriter(str(folder), purge_step=self._epoch + 1)
        self._writer.add_text("config", f"```\n{json.dumps(record['config'], indent=2)}\n```")
        self._writer.flush()
