"""How a pipeline ends: what is still to come of the last batch is done, and the others are told.

A rank whose program ends, or drops its learner, without `learner.flush()` would leave its last
updates undone, and the other ranks without its last messages.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref

from localprop.engine.engine import Engine
from localprop.errors import StepFailed
from localprop.ranks.faults import end_process
from localprop.ranks.pipeline import Pipeline


class Ending:
    """What a pipeline leaves to do when its learner is dropped, or the program ends.

    Args:
        pipeline: of the learner; not kept.
        engine: that runs its stage.
    """

    def __init__(self, pipeline: Pipeline, engine: Engine) -> None:
        self._engine, self._transport = engine, pipeline.transport
        self._reports, self._heartbeat = pipeline.reports, pipeline.heartbeat

    def run(self, *, finishing: bool = True) -> None:
        """Finish the last batch, unless the last call has failed, and take leave."""
        try:
            if finishing and not self._reports.has_told:
                with self._reports.reporting():
                    self._engine.flush()
                    self._transport.wait_for_sends()
        except StepFailed as error:
            _failures.append(str(error))
        finally:
            self._heartbeat.close()


_failures: list[str] = []
_postponed: list[Ending] = []
_finalizers: list[weakref.finalize[[Ending], Pipeline]] = []


def finish_when_dropped(pipeline: Pipeline, engine: Engine) -> None:
    """Finish the last batch of a pipeline when it is dropped, at the latest when Python exits."""
    ending = Ending(pipeline, engine)
    finalizer = weakref.finalize(pipeline, _run_or_postpone, ending)
    finalizer.atexit = False  # `_finish_all` does it
    _finalizers[:] = [each for each in _finalizers if each.alive] + [finalizer]


def _run_or_postpone(ending: Ending) -> None:
    if threading.current_thread() is threading.main_thread():
        ending.run()
    else:  # the garbage collector may run in any thread, also in that of a heartbeat
        _postponed.append(ending)


@atexit.register
def _finish_all() -> None:
    alive = [each.detach() for each in _finalizers]
    endings = _postponed + [found[2][0] for found in alive if found is not None]
    for ending in endings:
        # An exception that ends the program leaves others without its next step.
        ending.run(finishing=not hasattr(sys, "last_value"))
    if _failures:
        end_process("\n".join(["The last batch was not finished:", *_failures]))
