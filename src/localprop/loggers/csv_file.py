"""A log as a CSV file."""

from __future__ import annotations

import csv
import os
from io import StringIO
from pathlib import Path

from localprop.errors import BadInput, check
from localprop.loggers.safe_logger import Record
from localprop.writing.files import write_text


class CsvFile:
    """Writes a row for each epoch: `epoch`, `step`, `lr`, `loss/0`, ...; `run` first, of `compare`.

    The file is complete at all times: a kill leaves whole rows. Columns stand in the order in which
    epochs first have them, and a cell is empty where an epoch has no such figure. When a run
    starts, the rows of its epochs that are to come are removed: all rows by a new run, and by a
    resumed one those after its checkpoint.

    Args:
        path: the file. Its folders are made.

    Raises:
        BadInput: the file cannot be written, or there is one that is no such log.

    Example:
        >>> log = CsvFile("log.csv")
        >>> log({"kind": "start", "epoch": 0})
        >>> log({"kind": "epoch", "epoch": 1, "step": 10, "lr": 0.1, "loss/0": 2.5})
        >>> print(Path("log.csv").read_text(), end="")
        epoch,step,lr,loss/0
        1,10,0.1,2.5
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))
        self._rows: list[dict[str, object]] = []
        parent = next(each for each in self.path.absolute().parents if each.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(
                f"{parent} is not a writable directory: choose another file than {path}."
            )
        self._read()

    def __repr__(self) -> str:
        return f"CsvFile({str(self.path)!r})"

    def __call__(self, record: Record) -> None:
        """Take a record of a run.

        Raises:
            BadInput: at the start, as the constructor.
            RunFailed: the file cannot be written.
        """
        if record["kind"] == "start":
            run, done = record.get("run", ""), record["epoch"]
            self._rows = [
                row
                for row in self._read()
                if row.get("run", "") != run or int(str(row["epoch"])) <= done
            ]
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif record["kind"] == "epoch":
            first = {"run": record["run"]} if "run" in record else {}
            self._rows.append(first | {key: record[key] for key in record if key != "kind"})
        else:
            return
        write_text(self.path, _format(self._rows))

    def _read(self) -> list[dict[str, object]]:
        """The rows of a log that is there already; without cells that are empty."""
        if not os.path.lexists(self.path):
            return []
        try:
            text = self.path.read_text("utf-8") if self.path.is_file() else None
            reader = csv.DictReader(StringIO(text or ""), strict=True)
            rows = [*reader]
            columns = reader.fieldnames or []
            good = {"epoch", "step"} <= {*columns} or text == ""
            # None is the name of cells beyond the columns, and the value of those that are missing.
            whole = all(None not in (*row, *row.values()) for row in rows)
            good = good and whole and all(row["epoch"].isdecimal() for row in rows)
        except (OSError, ValueError, csv.Error):
            good = False
        check([] if good else [f"{self.path} is there, and is no log of a run: choose another."])
        return [{key: value for key, value in row.items() if value} for row in rows]


def _format(rows: list[dict[str, object]]) -> str:
    columns = dict.fromkeys(key for row in rows for key in row)
    text = StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
