"""Several pipelines side by side: replicas against one process that runs their shards as micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from crew import Blocks, Crew, Outcome, Run, Stream, noise, train
from test_battery import METHODS, Method
from test_rank_faults import TIMEOUT_S, endings, sgd, signalled
from test_ranks import COMBINED, train_on_ranks
from test_ranks_methods import REFUSED
from torch import Tensor, nn

import localprop as lp
from localprop.step.schedule import Op

pytestmark = pytest.mark.xdist_group("ranks")
RULES = {method.__name__: method for method in METHODS} | {"combined": lambda: COMBINED}
# Two replicas of one stage, and of two stages where a method may be divided between ranks.
PLACES = [(rule, 2, name) for name, rule in RULES.items()]
PLACES += [(rule, 4, name) for name, rule in RULES.items() if name not in REFUSED]
each_place = pytest.mark.parametrize(
    ("rule", "ranks"), [place[:2] for place in PLACES], ids=[f"{name}-{ranks}" for _, ranks, name in PLACES]
)


def exact() -> nn.Module:
    return Blocks().double()


def exact_noise() -> Stream:
    return noise((12, 12, 11), dtype=torch.float64)


def both(crew: Crew, rule: lp.Rule, ranks: int, microbatches: int) -> tuple[Outcome, list[Outcome]]:
    """One process, and two replicas of so many micro-batches each."""
    options = {"modules": 6, "microbatches": 2 * microbatches, "normalised": lp.Normalised()}
    run = Run(rule, exact, options, batches=exact_noise, pause=(1,))
    alone = train(run, alone=True)
    run = replace(run, options=run.options | {"microbatches": microbatches}, ranks={"replicas": 2})
    together = crew.run(ranks, train_on_ranks, run)
    for outcome in together:
        assert isinstance(outcome, Outcome), outcome
    return alone, together


def trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what BatchNorm counts, which is each replica's own."""
    return {name: value for name, value in state.items() if "running_" not in name and "num_batches" not in name}


def difference(alone: Outcome, together: list[Outcome]) -> float:
    """The largest one, of losses, the network, heads and momentum; replicas themselves must agree to the bit."""
    own: dict[str, Tensor] = {}
    for outcome in together:
        for name, value in trained(outcome.own).items():
            assert torch.equal(own.setdefault(name, value), value), f"replicas differ in {name}"
    pairs = [(torch.tensor(alone.losses[k]), torch.tensor(together[0].losses[k])) for k in alone.losses]
    assert together[0].network is not None
    assert alone.network is not None
    for there, here in ((trained(alone.network), trained(together[0].network)), (trained(alone.own), own)):
        assert there.keys() == here.keys()
        pairs += [(there[name], here[name]) for name in there]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@each_place
def test_one_micro_batch_each(crew: Crew, rule: Method, ranks: int) -> None:
    alone, together = both(crew, rule(), ranks, microbatches=1)
    assert difference(alone, together) == 0


@each_place
def test_two_micro_batches_each(crew: Crew, rule: Method, ranks: int) -> None:
    alone, together = both(crew, rule(), ranks, microbatches=2)
    # Several BatchNorm1d over three samples stand in DGL's heads: each may multiply a rounding by 1 / sqrt(eps) = 316.
    assert difference(alone, together) < (1e-8 if rule.__name__ in ("dgl", "man_plus") else 1e-12)


def test_the_network_has_the_statistics_of_replica_0(crew: Crew) -> None:
    """All ranks predict the same, and it is what the gathered network says."""
    run = Run(lp.backlink(), exact, {"modules": 6}, {"replicas": 2}, exact_noise)
    together = crew.run(4, train_on_ranks, run)
    network = exact()
    network.load_state_dict(together[0].network)
    network.eval()
    with torch.no_grad():
        expected = network(exact_noise()[0][0])
    assert all(torch.equal(outcome.prediction, expected) for outcome in together)
    assert [outcome.network is None for outcome in together] == [False, True, True, True]


def skewed(now: Callable[[], None]) -> str:
    """A run whose second replica has another batch in step 1."""
    torch.manual_seed(0)
    data, ranks = noise(), lp.Ranks(replicas=2, timeout_s=20)
    learner = lp.Learner(Blocks(), lp.greedy(), modules=6, optimizer=sgd, sample=data[0], ranks=ranks)
    for step, (images, labels) in enumerate(data):
        if step == dist.get_rank() == 1:
            now()
            images = images + 1
        learner.step((images, labels))
    return "nothing was refused"


def test_replicas_with_other_batches_are_refused() -> None:
    _, refused = endings(2, skewed, limit_s=10)
    assert isinstance(refused.answer, lp.BadInput)
    assert "In step 1 rank 0 has a batch of 12" in str(refused.answer)
    assert "but rank 1 one of 12" in str(refused.answer)
    assert "their loaders must give the same batches" in str(refused.answer)


def test_a_replica_hangs() -> None:
    scenario = partial(signalled, lp.greedy(), (1, 2, Op.B), signal.SIGSTOP, replicas=2)
    found = endings(2, scenario, limit_s=TIMEOUT_S + 7, stopped=1)
    assert isinstance(found[0].answer, lp.StepFailed)
    assert found[0].answer.record is not None
    assert found[0].answer.record["rank"] == 1


def test_replicas_that_do_not_divide_the_ranks_are_refused(crew: Crew) -> None:
    answers = crew.run(3, train_on_ranks, Run(lp.greedy(), ranks={"replicas": 2}))
    for answer in answers:
        assert isinstance(answer, lp.BadInput)
        assert "replicas=2 of 3 ranks: the number of ranks must be a multiple" in str(answer)


def test_fewer_samples_than_parts_are_refused_everywhere(crew: Crew) -> None:
    run = Run(lp.greedy(), Blocks, {"modules": 6, "microbatches": 2}, {"replicas": 2}, few)
    for answer in crew.run(4, train_on_ranks, run):
        assert isinstance(answer, lp.BadInput)
        assert "A batch of 3 cannot be split into 4 micro-batches" in str(answer)


def few() -> Stream:
    return noise((12, 3))
