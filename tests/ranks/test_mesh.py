"""Several replicas of a pipeline against one process that runs their shards as micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import localprop as lp
from localprop.schedule.schedule import Op
from tests.helpers.methods import METHODS, REFUSED
from tests.helpers.processes import (
    TIMEOUT_S,
    FaultPoint,
    MarkFault,
    run_scenario,
    train_with_signal,
)
from tests.helpers.ranks import (
    COMBINED,
    Batches,
    Blocks,
    Build,
    Outcome,
    RankPool,
    Run,
    build_tied,
    noise,
    sgd,
    train,
    train_on_ranks,
)

pytestmark = pytest.mark.xdist_group("ranks")

RULES: dict[str, Callable[[], lp.Rule]] = {method.__name__: method for method in METHODS}
RULES["combined"] = lambda: COMBINED
# Two replicas of one stage, and of two stages where a method may be divided between ranks.
CASES = [(name, 2) for name in RULES] + [(name, 4) for name in RULES if name not in REFUSED]
each_case = pytest.mark.parametrize(
    ("name", "ranks"),
    [
        # Replicas of two stages have all that those of one have.
        pytest.param(name, ranks, marks=[pytest.mark.long] * int((name, 2 * ranks) in CASES))
        for name, ranks in CASES
    ],
)


def build_in_float64() -> nn.Module:
    return Blocks().double()


def noise_in_float64() -> Batches:
    return noise((12, 12, 11), dtype=torch.float64)


def build_tied_in_float64() -> nn.Module:
    """Each of two stages steps what two of its modules use."""
    return build_tied((0, 1), (4, 5, 7)).double()


def train_both(
    pool: RankPool,
    rule: lp.Rule,
    ranks: int,
    microbatches: int,
    build: Build = build_in_float64,
) -> tuple[Outcome, list[Outcome]]:
    """Train in one process, and in two replicas of `microbatches` micro-batches each."""
    options = {"modules": 6, "microbatches": 2 * microbatches, "normalization": lp.Normalization()}
    run = Run(rule, build, options, batches=noise_in_float64, inspect_after=(1,))
    alone = train(run, alone=True)
    run = replace(run, options=run.options | {"microbatches": microbatches}, ranks={"replicas": 2})
    together = pool.run(ranks, train_on_ranks, run)
    for outcome in together:
        assert isinstance(outcome, Outcome), outcome
    return alone, together


def drop_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the running statistics of BatchNorm, which each replica computes from its own shard."""
    return {
        name: value
        for name, value in state.items()
        if "running_" not in name and "num_batches" not in name
    }


def find_largest_difference(alone: Outcome, together: list[Outcome]) -> float:
    """Compare losses, networks, heads and momentum; replicas must agree to the bit."""
    owned: dict[str, Tensor] = {}
    for outcome in together:
        for name, value in drop_statistics(outcome.owned).items():
            assert torch.equal(owned.setdefault(name, value), value), f"replicas differ in {name}"
    assert together[0].network is not None
    assert alone.network is not None
    pairs = [
        (torch.tensor(alone.losses[k]), torch.tensor(together[0].losses[k])) for k in alone.losses
    ]
    for one, other in (
        (drop_statistics(alone.network), drop_statistics(together[0].network)),
        (drop_statistics(alone.owned), owned),
    ):
        assert one.keys() == other.keys()
        pairs += [(one[name], other[name]) for name in one]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@each_case
def test_one_micro_batch_each(pool: RankPool, name: str, ranks: int) -> None:
    alone, together = train_both(pool, RULES[name](), ranks, microbatches=1)
    assert find_largest_difference(alone, together) == 0


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["greedy", "backlink", "interlocking", "end_to_end"])
def test_tied_parameters(pool: RankPool, name: str, ranks: int) -> None:
    alone, together = train_both(pool, RULES[name](), ranks, 1, build_tied_in_float64)
    assert find_largest_difference(alone, together) == 0


@each_case
def test_two_micro_batches_each(pool: RankPool, name: str, ranks: int) -> None:
    alone, together = train_both(pool, RULES[name](), ranks, microbatches=2)
    # DGL's heads have several BatchNorm1d over three samples. Each may multiply a rounding error by
    # 1 / sqrt(eps) = 316.
    tolerance = 1e-8 if name in ("dgl", "man_plus") else 1e-12
    assert find_largest_difference(alone, together) < tolerance


def test_the_network_has_the_statistics_of_replica_0(pool: RankPool) -> None:
    """All ranks predict the same, and so does the gathered network."""
    options, ranks = {"modules": 6}, {"replicas": 2}
    run = Run(lp.backlink(), build_in_float64, options, ranks, noise_in_float64)
    together = pool.run(4, train_on_ranks, run)
    network = build_in_float64()
    network.load_state_dict(together[0].network)
    network.eval()
    with torch.no_grad():
        expected = network(noise_in_float64()[0][0])
    assert all(torch.equal(outcome.prediction, expected) for outcome in together)
    assert [outcome.network is None for outcome in together] == [False, True, True, True]


# --- refusals and failures -----------------------------------------------------------------------


def train_on_other_batches(mark_fault: MarkFault) -> str:
    """Train with another batch in step 1 of the second replica."""
    torch.manual_seed(0)
    batches, ranks = noise(), lp.Ranks(replicas=2, timeout_s=20)
    learner = lp.Learner(
        Blocks(), lp.greedy(), modules=6, optimizer=sgd, sample=batches[0], ranks=ranks
    )
    for step, (images, labels) in enumerate(batches):
        shift = 0
        if step == dist.get_rank() == 1:
            mark_fault()
            shift = 1
        learner.step((images + shift, labels))
    return "nothing was refused"


def test_replicas_with_other_batches_are_refused() -> None:
    _, refused = run_scenario(2, train_on_other_batches, limit_s=10)
    assert isinstance(refused.answer, lp.BadInput)
    assert "In step 1 rank 0 has a batch of 12" in str(refused.answer)
    assert "but rank 1 one of 12" in str(refused.answer)
    assert "their loaders must give the same batches" in str(refused.answer)


def test_a_replica_hangs() -> None:
    point = FaultPoint(1, 2, Op.B)
    scenario = partial(train_with_signal, lp.greedy(), point, signal.SIGSTOP, replicas=2)
    endings = run_scenario(2, scenario, limit_s=TIMEOUT_S + 7, stopped=1)
    assert isinstance(endings[0].answer, lp.StepFailed)
    assert endings[0].answer.record is not None
    assert endings[0].answer.record["rank"] == 1


def test_replicas_that_do_not_divide_the_ranks_are_refused(pool: RankPool) -> None:
    answers = pool.run(3, train_on_ranks, Run(lp.greedy(), ranks={"replicas": 2}))
    for answer in answers:
        assert isinstance(answer, lp.BadInput)
        assert "replicas=2 of 3 ranks: the number of ranks must be a multiple" in str(answer)


def test_fewer_samples_than_micro_batches_are_refused_everywhere(pool: RankPool) -> None:
    options = {"modules": 6, "microbatches": 2}
    run = Run(lp.greedy(), Blocks, options, {"replicas": 2}, noise_with_a_small_batch)
    for answer in pool.run(4, train_on_ranks, run):
        assert isinstance(answer, lp.BadInput)
        assert "A batch of 3 cannot be split into 4 micro-batches" in str(answer)


def noise_with_a_small_batch() -> Batches:
    return noise((12, 3))
