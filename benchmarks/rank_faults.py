"""Stop, kill, delay or mislead one of several ranks, and see that the others end and say why.

Each run starts 2 to 4 ranks on this machine. One of them gets a fault at a drawn moment: while
learners are made, before an action of a step, between two steps, or before it gathers. It is
killed (SIGKILL), stopped (SIGSTOP), sleeps for longer than the time-out, or gets another batch or
bad labels. All others must end within the time-out and five seconds, with another exit code than 0
and a sentence that names the rank and what was done. The sentence must come before the frames of
torch's stack. A rank that sleeps for half of the time-out must harm nobody.

The store of the ranks is in rank 0, as without torchrun, or outside of them, as under torchrun.
Ranks are forks, so that none imports torch again; each is a process of its own.

    python benchmarks/rank_faults.py --count 100 --out benchmarks/results/rank_faults.json
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore

import localprop as lp
from localprop.schedule.lowering import lower
from localprop.schedule.schedule import Action
from localprop.training.environment import describe_environment

FAULTS = ("killed", "stopped", "delayed", "delayed a little", "other data", "bad labels")
MOMENTS = ("in the making", "at an action", "between steps", "before a gather")
RULES: dict[str, Callable[[], lp.Rule]] = {
    "greedy": lp.greedy,
    "backlink": lp.backlink,
    "interlocking": lp.interlocking,
    "contsup": lp.contsup,
    "end_to_end": lp.end_to_end,
}
ROOT = f"{Path(__file__).parent.parent}/"
SPARE_S = 5.0  # beyond the time-out
STEPS = 8


@dataclass(frozen=True)
class Trial:
    """A run with a fault.

    Attributes:
        ranks: how many there are.
        replicas: how many pipelines they make.
        rule: the name of the training rule.
        fault: what becomes of one rank.
        moment: when.
        rank: which one.
        step: the step of the fault.
        action: before which action of that step, counted from 0.
        store: where the ranks meet.
    """

    ranks: int
    replicas: int
    rule: str
    fault: str
    moment: str
    rank: int
    step: int
    action: int
    store: str


@dataclass
class Ending:
    """How a rank ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        seconds: from the fault to its end.
        text: what it has printed.
    """

    code: int
    seconds: float
    text: str


def draw(draws: random.Random, number: int) -> Trial:
    """A trial; faults take turns."""
    fault = FAULTS[number % len(FAULTS)]
    ranks = draws.choice((2, 3, 4))
    replicas = 2 if ranks == 4 and draws.random() < 0.3 else 1
    rule = draws.choice([*RULES])
    moment = "between steps" if "dat" in fault or "lab" in fault else draws.choice(MOMENTS)
    store = draws.choice(("in rank 0", "in rank 0", "outside"))
    rank, step, action = draws.randrange(ranks), draws.randrange(3), draws.randrange(10)
    return Trial(ranks, replicas, rule, fault, moment, rank, step, action, store)


# --- a rank ---------------------------------------------------------------------------------------


class Model(nn.Module):
    """A stem, six blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(6)]
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


class Fault:
    """Happens once on the rank of a trial.

    Args:
        trial: says what and when.
        rank: this one.
        timeout_s: of the ranks.
        file: gets the time of the fault.
    """

    def __init__(self, trial: Trial, rank: int, timeout_s: float, file: Path) -> None:
        self.trial, self.timeout_s, self.file = trial, timeout_s, file
        self.is_due = rank == trial.rank
        self.step = self.action = 0

    def reach(self, moment: str) -> None:
        """Do it, if its moment has come."""
        if not self.is_due or moment != self.trial.moment:
            return
        self.is_due = False
        self.file.write_text(str(time.time()))
        match self.trial.fault:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "delayed":
                time.sleep(2 * self.timeout_s + SPARE_S)
            case "delayed a little":
                time.sleep(self.timeout_s / 2)

    def observe(self, action: Action) -> None:
        """Called with every action of a step."""
        if self.step == self.trial.step and self.action == self.trial.action:
            self.reach("at an action")
        self.action += 1

    def change(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch, or a wrong one on the rank of the fault."""
        images, labels = batch
        is_now = self.is_due and self.step == self.trial.step
        if is_now and self.trial.fault == "other data":
            self.reach("between steps")
            return images + 1, labels
        if is_now and self.trial.fault == "bad labels":
            self.reach("between steps")
            return images, labels + 100
        if self.step == self.trial.step:
            self.reach("between steps")
        return batch


def train(trial: Trial, fault: Fault, timeout_s: float) -> None:
    """What each rank runs: steps, a gather, more steps; without a flush at the end."""
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def lower_later(*given: Any, **named: Any) -> Any:
        fault.reach("in the making")
        return lower(*given, **named)

    batch = torch.randn(8, 3, 12, 12), torch.randint(10, (8,))
    with mock.patch("localprop.ranks.pipeline.lower", lower_later):
        learner = lp.Learner(
            Model(),
            RULES[trial.rule](),
            modules=6,
            microbatches=2,
            optimizer=sgd,
            sample=batch,
            ranks=lp.Ranks(trial.replicas, timeout_s=timeout_s),
        )
    for step in range(STEPS):
        fault.step, fault.action = step, 0
        learner.step(fault.change(batch), observe=fault.observe)
        if step == trial.step:
            fault.reach("before a gather")
            learner.gather()


def be_rank(
    rank: int, trial: Trial, environment: dict[str, str], folder: Path, timeout_s: float
) -> NoReturn:
    """Run as a rank, and end as a script does."""
    code = 1
    log = os.open(folder / f"log{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    os.chdir(folder / "left")
    try:
        train(trial, Fault(trial, rank, timeout_s, folder / "fault"), timeout_s)
        code = 0
    except Exception as error:
        traceback.print_exc()
        sys.last_value = error
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


# --- a trial --------------------------------------------------------------------------------------


def find_port() -> int:
    """A free port, below those that the system hands out to others meanwhile."""
    while True:
        with (
            suppress(OSError),
            socket.create_server(("", random.randrange(15000, 32000))) as server,
        ):
            port: int = server.getsockname()[1]
            return port


def try_out(trial: Trial, timeout_s: float) -> tuple[list[Ending], list[str]]:
    """Run a trial. Returns how each rank ended, and what is left behind."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "left").mkdir()
        environment = {
            "WORLD_SIZE": str(trial.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(find_port()),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        keeper = None
        if trial.store == "outside":
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            keeper = fork(lambda: keep_store(int(environment["MASTER_PORT"])))
        ranks = [
            fork(lambda rank=rank: be_rank(rank, trial, environment, folder, timeout_s))  # type: ignore[misc]
            for rank in range(trial.ranks)
        ]
        ends = wait_for_all(ranks, trial, timeout_s, folder / "fault")
        if keeper is not None:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        fault = float((folder / "fault").read_text()) if (folder / "fault").exists() else 0.0
        endings = [
            Ending(code, end - fault, (folder / f"log{rank}").read_text())
            for rank, (code, end) in enumerate(ends)
        ]
        left = [f"a file {each}" for each in os.listdir(folder / "left")]
        if os.path.isdir("/dev/shm"):
            numbers = "|".join(map(str, ranks))
            own = re.compile(rf"(?<!\d)({numbers})(?!\d)")
            left += [f"/dev/shm/{each}" for each in os.listdir("/dev/shm") if own.search(each)]
        return endings, left
    finally:
        shutil.rmtree(folder)


def fork(action: Callable[[], object]) -> int:
    """Run an action in a child, which ends with it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    return child


def keep_store(port: int) -> None:
    """Host the store of the ranks, as torchrun does."""
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    while store:
        time.sleep(60)


def wait_for_all(
    children: list[int], trial: Trial, timeout_s: float, fault: Path
) -> list[tuple[int, float]]:
    """Wait for all ranks; a stopped one goes on when the others have ended.

    Returns:
        For each its exit code and the time of its end. Who does not end is killed, after a minute.
    """
    ends: dict[int, tuple[int, float]] = {}
    limit = time.time() + 60 + 3 * timeout_s
    others = {*range(len(children))} - {trial.rank}
    killed = False
    while len(ends) < len(children):
        for rank, child in enumerate(children):
            if rank not in ends:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    ends[rank] = os.waitstatus_to_exitcode(status), time.time()
        if trial.fault == "stopped" and others <= ends.keys() and trial.rank not in ends:
            os.kill(children[trial.rank], signal.SIGCONT)
        if time.time() > limit and not killed:
            killed = True
            for rank, child in enumerate(children):
                if rank not in ends:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [ends[rank] for rank in range(len(children))]


def judge(trial: Trial, endings: list[Ending], left: list[str], timeout_s: float) -> list[str]:
    """What is wrong with how the ranks ended."""
    wrong = [f"{each} is left behind" for each in left]
    for rank, ending in enumerate(endings):
        if trial.fault == "delayed a little":
            if ending.code != 0:
                wrong.append(f"rank {rank} ended with {ending.code}")
            continue
        if rank == trial.rank:
            if ending.code == 0:
                wrong.append(f"rank {rank}, which had the fault, ended with 0")
            continue
        if ending.code <= 0:
            wrong.append(f"rank {rank} ended with {ending.code}")
        if ending.seconds > timeout_s + SPARE_S:
            wrong.append(f"rank {rank} ended after {ending.seconds:.1f} s")
        if not names(trial, ending.text):
            wrong.append(f"rank {rank} does not name rank {trial.rank} and what it did")
        frame = ending.text.find("frame #")
        said = re.search(r"Rank \d+ failed|has a batch", ending.text)
        if frame >= 0 and (said is None or frame < said.start()):
            wrong.append(f"rank {rank} shows frames first")
    return wrong


def names(trial: Trial, text: str) -> bool:
    """Whether a text names the rank of the fault, and an action."""
    where = r"\((seen by rank \d+ )?(at action \S+, on|between two steps)"
    if trial.fault == "other data":  # two ranks differ, and nobody knows which one is right
        return bool(re.search(rf"rank {trial.rank} (has|one of)", text))
    return bool(re.search(rf"Rank {trial.rank} failed {where}", text))


# --- the command ----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a trial.

    Attributes:
        number: of the trial.
        trial: the trial.
        endings: how each rank ended.
        wrong: what is wrong with that.
    """

    number: int
    trial: Trial
    endings: list[Ending]
    wrong: list[str]

    @property
    def seconds(self) -> float:
        """From the fault to the end of the last of the others."""
        others = [each for rank, each in enumerate(self.endings) if rank != self.trial.rank]
        return max(each.seconds for each in others)


def run_trial(given: tuple[int, Trial, float]) -> Outcome:
    """Try one out."""
    number, trial, timeout_s = given
    endings, left = try_out(trial, timeout_s)
    return Outcome(number, trial, endings, judge(trial, endings, left, timeout_s))


def summarise(outcomes: list[Outcome], args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The figures, and all of what went wrong."""
    rows = []
    for fault in FAULTS:
        own = [each for each in outcomes if each.trial.fault == fault]
        took = sorted(each.seconds for each in own) or [0.0]
        wrong = sum(bool(each.wrong) for each in own)
        median, longest = round(took[len(took) // 2], 2), round(took[-1], 2)
        row = {"fault": fault, "trials": len(own), "failures": wrong}
        rows.append({**row, "median_s": median, "longest_s": longest})
    return {
        "environment": describe_environment(),
        "trials": len(outcomes),
        "seed": args.seed,
        "timeout_s": args.timeout_s,
        "jobs": args.jobs,
        "load": os.getloadavg(),
        "seconds": round(seconds, 1),
        "rows": rows,
        "failures": [
            {
                "number": each.number,
                **asdict(each.trial),
                "wrong": each.wrong,
                "texts": [ending.text[-3000:].replace(ROOT, "") for ending in each.endings],
            }
            for each in outcomes
            if each.wrong
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=5.0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--only", type=int, help="run this trial alone, and print what ranks say")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    draws = random.Random(args.seed)
    trials = [(number, draw(draws, number), args.timeout_s) for number in range(args.count)]
    if args.only is not None:
        trials = [trials[args.only]]
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(args.jobs) as workers:
        for outcome in workers.imap(run_trial, trials):
            outcomes.append(outcome)
            trial, said = outcome.trial, "; ".join(outcome.wrong) or "as it must"
            where = f"{trial.fault} {trial.moment}, rank {trial.rank} of {trial.ranks}"
            print(f"{outcome.number}: {where}: {said}", flush=True)
            if args.only is not None:
                for rank, each in enumerate(outcome.endings):
                    print(f"--- rank {rank}: {each.code} after {each.seconds:.1f} s\n{each.text}")
            result = summarise(outcomes, args, time.perf_counter() - start)
            if args.out:  # each time, so that a run may be ended early
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(format_rows(result["rows"], args.timeout_s))
    return 1 if result["failures"] else 0


def format_rows(rows: list[dict[str, Any]], timeout_s: float) -> str:
    """The table."""
    lines = [
        f"time-out {timeout_s:g} s",
        "| one rank is | trials | failures | median s | longest s |",
        "|:--|--:|--:|--:|--:|",
    ]
    lines += ["| " + " | ".join(str(each) for each in row.values()) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
