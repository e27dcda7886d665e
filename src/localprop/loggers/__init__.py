"""What follows a run as it trains: loggers, for the argument `log` of `train` and `compare`.

A logger is any function of one record, a dictionary of numbers and texts. Each record has a `kind`,
and those of `compare` have a `run`, such as "greedy/seed-0".

"start", before the first step:
    epoch: the epochs done before, by a run that is resumed; else 0.
    epochs: the epochs that the run will have.
    config: the fields of its `Config`, a dictionary; the only value that is no number or text.
"epoch", after each epoch and its checkpoint; what an epoch does not have is left out:
    epoch: its number, from 1.
    step: the steps since the beginning of the run.
    lr: the learning rate.
    loss/0, loss/1, ...: the mean loss of each module that has one, over the epoch's samples.
    validation_accuracy, validation_loss: of the network; in 0..1, and in nats per label.
    exit_accuracy/0, exit_loss/0, ...: the same at the head of each module that predicts labels.
    seconds: of training, without validation.
    peak_memory_bytes: on CUDA devices.
    skipped: batches that were left out, since their numbers were not finite.
"end", also of a run that fails or is stopped:
    outcome: "finished", "failed" or "stopped".
    error: what went wrong, unless it has finished.
    test_accuracy, test_loss, exit_test_accuracy/0, exit_test_loss/0, ..., validation_accuracy,
    validation_loss, seconds, peak_memory_bytes: the figures of the summary, if it has finished.

>>> import localprop as lp
>>> def show(record):
...     if record["kind"] == "epoch":
...         print(record["epoch"], sorted(key for key in record if key.startswith("loss/")))
>>> _ = lp.train(model="mlp", method="greedy()", epochs=2, limit=200, log=[show, "csv:log.csv"])
1 ['loss/0', 'loss/1', 'loss/2']
2 ['loss/0', 'loss/1', 'loss/2']
"""

from localprop.loggers.csv_file import CsvFile
from localprop.loggers.read import Log, make_loggers
from localprop.loggers.safe_logger import Logger, Record
from localprop.loggers.tensorboard import TensorBoard

__all__ = ["CsvFile", "Log", "Logger", "Record", "TensorBoard", "make_loggers"]
