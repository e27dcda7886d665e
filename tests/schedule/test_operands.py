"""What actions read and write, written out by hand; a † marks the reader that takes a value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.rule.attach import AttachPoint
from localprop.rule.credit import Credit
from localprop.schedule.lowering import lower
from localprop.schedule.operands import Operands, find_operands
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import Action, Schedule
from localprop.schedule.sums import find_flows_set_apart
from localprop.schedule.values import Kind, Value, name_context, name_gradient
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from tests.helpers.operands import print_liveness, print_ranks, select, split_lines, wire_rule
from tests.helpers.schedules import wire_mlp


def wire_resnet8(rule: lp.Rule, modules: int = 4) -> Wiring:
    """The wiring of a ResNet-8, whose stem and three blocks are four layers."""
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
    partition = lp.Partition.uniform(layers, modules)
    return wire(rule, partition, normalization=lp.Normalization())


# --- one process ------------------------------------------------------------------------------

# Two modules of one layer each, trained by their own losses alone. Only h0 crosses the cut.
GREEDY = """
    0F    x                     -> h0 f0 graph0
    0L    f0† x y               -> loss0 H0 g0<0L
    0H    H0                    ->
    0B    graph0† g0<0L†        -> G0
    0S    G0                    ->
    1F    h0†                   -> f1 graph1
    1L    f1† x y               -> loss1 g1<1L
    1B    graph1† g1<1L†        -> G1
    1S    G1                    ->
"""

# Two modules of two layers; the second layer, segment 1, learns from both losses. Its graph and
# flow 1 wait for the gradient of segment 2, while flow 0 goes on to segment 0.
BACKLINK = """
    0F    x                     -> h0 graph0
    1F    h0†                   -> h1 f1 graph1 leaf1
    1L    f1† x y               -> loss0 H0 g1.0<1L
    1H    H0                    ->
    1B.0  graph1 g1.0<1L† leaf1† -> G1 g0<1B.0
    0B    graph0† g0<1B.0†      -> G0
    0S    G0                    ->
    2F    h1†                   -> f2 graph2 leaf2
    2L    f2† x y               -> loss1 g2<2L
    2B    graph2† g2<2L† leaf2† -> G2 g1.1<2B
    2S    G2                    ->
    1B.1  graph1† g1.1<2B†      -> G1
    1S    G1                    ->
"""

# Three modules of one layer. Outputs go with the next forward, graphs wait for their backward.
END_TO_END = """
    0F    x                     -> h0 graph0
    1F    h0†                   -> h1 graph1 leaf1
    2F    h1†                   -> f2 graph2 leaf2
    2L    f2† x y               -> loss2 g2<2L
    2B    graph2† g2<2L† leaf2† -> G2 g1<2B
    2S    G2                    ->
    1B    graph1† g1<2B† leaf1† -> G1 g0<1B
    1S    G1                    ->
    0B    graph0† g0<1B†        -> G0
    0S    G0                    ->
"""


@pytest.mark.parametrize(
    ("rule", "layers", "modules", "expected"),
    [
        (lp.greedy(), 2, 2, GREEDY),
        (lp.backlink(), 4, 2, BACKLINK),
        (lp.end_to_end(), 3, 3, END_TO_END),
    ],
    ids=["greedy", "backlink", "end_to_end"],
)
def test_operands_in_one_process(rule: lp.Rule, layers: int, modules: int, expected: str) -> None:
    assert print_liveness(wire_rule(rule, layers, modules)) == split_lines(expected)


def test_losses_that_see_features_and_pixels_alone_are_greedy_to_the_schedule() -> None:
    assert print_liveness(wire_resnet8(lp.infopro(), modules=2)) == split_lines(GREEDY)


def test_operands_in_microbatches() -> None:
    """Values of micro-batch 1 end in /1. Sums of gradients and losses are of all micro-batches."""
    lines = print_liveness(wire_rule(lp.greedy(), 2, 2), microbatches=2)
    assert select(lines, "0F", "0L", "0F1", "0L1", "0H", "0B1", "1F1", "1B1") == split_lines(
        """
        0F    x                     -> h0 f0 graph0
        0L    f0† x y               -> loss0 H0 g0<0L
        0F1   x/1                   -> h0/1 f0/1 graph0/1
        0L1   f0/1† x/1 y/1         -> loss0 H0 g0<0L/1
        0H    H0                    ->
        0B1   graph0/1† g0<0L/1†    -> G0
        1F1   h0/1†                 -> f1/1 graph1/1
        1B1   graph1/1† g1<1L/1†    -> G1
        """
    )


# --- two ranks --------------------------------------------------------------------------------

# Actions with ' belong to the batch before when the loop runs; here they follow their own batch.
BACKLINK_RANKS = (
    """
    0F          x                     -> h0 graph0
    1F          h0†                   -> h1 f1 graph1 leaf1
    1SEND_F>1   h1†                   ->
    1L          f1† x y               -> loss0 H0 g1.0<1L
    1H          H0                    ->
    1B.0        graph1 g1.0<1L† leaf1† -> G1 g0<1B.0
    0B          graph0† g0<1B.0†      -> G0
    0S          G0                    ->
    2RECV_B<1'                        -> g1.1<2B
    1B.1'       graph1† g1.1<2B†      -> G1
    1S'         G1                    ->
    """,
    """
    1RECV_F<0                         -> h1
    2F          h1†                   -> f2 graph2 leaf2
    2L          f2† x y               -> loss1 g2<2L
    2B          graph2† g2<2L† leaf2† -> G2 g1.1<2B
    2SEND_B>0   g1.1<2B†              ->
    2S          G2                    ->
    """,
)


def test_operands_on_two_ranks() -> None:
    wiring = wire_rule(lp.backlink(), 4, 2)
    assert print_ranks(wiring, cut=1) == [split_lines(text) for text in BACKLINK_RANKS]


# --- chosen actions ---------------------------------------------------------------------------


def test_two_losses_make_one_flow() -> None:
    """Backward links over whole modules: the gradient at h0 has two parts, in a fixed order."""
    lines = print_liveness(wire_rule(lp.backlink(), 2, 2))
    assert select(lines, "0L", "1B", "0B") == split_lines(
        """
        0L    f0† x y               -> loss0 H0 g0<0L
        1B    graph1† g1<1L† leaf1† -> G1 g0<1B
        0B    graph0† g0<0L† g0<1B† -> G0
        """
    )


def test_a_loss_that_passes_a_segment() -> None:
    """Loss 1 trains module 0 and passes module 1, which loss 2 trains. Nobody looks at h0."""
    lines = print_liveness(wire_rule(lp.interlocking(2), 3, 3))
    assert select(lines, "0F", "1F", "1L", "1B.0", "0B", "2B", "1B.1") == split_lines(
        """
        0F    x                     -> h0 graph0
        1F    h0†                   -> h1 f1 graph1 leaf1
        1L    f1† x y               -> loss1 H1 g1.0<1L
        1B.0  graph1 g1.0<1L† leaf1† -> g0<1B.0
        0B    graph0† g0<1B.0†      -> G0
        2B    graph2† g2<2L† leaf2† -> G2 g1.1<2B
        1B.1  graph1† g1.1<2B†      -> G1
        """
    )


def test_copies_of_parameters_are_no_values() -> None:
    """MAN's head 0 averages module 1's layer: P moves nothing through a store."""
    lines = print_liveness(wire_rule(lp.man(), 2, 2))
    without_copies = [line for line in lines if line != "0P ->"]
    assert (len(lines), without_copies) == (10, split_lines(GREEDY))


def test_contexts_are_read_by_encoders() -> None:
    """R1E: the network's input, and the input of the module before, if that is another one.

    No gradient goes back to them. Module 3's input is read by nobody.
    """
    lines = print_liveness(wire_resnet8(lp.contsup()))
    assert select(lines, "0F", "1F", "1B", "2F", "3F") == split_lines(
        """
        0F    x                     -> h0 f0 graph0
        1F    h0† x                 -> h1 f1 c1 graph1
        1B    graph1† g1<1L†        -> G1
        2F    h1† x c1†             -> h2 f2 c2 graph2
        3F    h2† x c2†             -> f3 graph3
        """
    )


def test_contexts_without_the_input_of_the_network() -> None:
    """R1: module 2 receives module 1's input alone. That of module 0 is x."""
    lines = print_liveness(wire_resnet8(lp.contsup(input=False, previous=1)))
    assert select(lines, "1F", "2F", "2B") == split_lines(
        """
        1F    h0† x                 -> h1 f1 c1 graph1
        2F    h1† c1†               -> h2 f2 c2 graph2
        2B    graph2† g2<2L†        -> G2
        """
    )


def test_contexts_travel_between_ranks() -> None:
    """Module 2 receives module 1's input from the other rank. Each rank has x."""
    first, second = print_ranks(wire_resnet8(lp.contsup()), cut=2)
    assert select(first, "1F", "1SEND_F>1", "1SEND_C>1", "1L") == split_lines(
        """
        1F          h0† x           -> h1 f1 c1 graph1
        1SEND_F>1   h1†             ->
        1SEND_C>1   c1†             ->
        1L          f1† x y         -> loss1 H1 g1<1L
        """
    )
    assert select(second, "1RECV_C<0", "1RECV_F<0", "2F", "3F") == split_lines(
        """
        1RECV_C<0                   -> c1
        1RECV_F<0                   -> h1
        2F          h1† x c1†       -> h2 f2 c2 graph2
        3F          h2† x c2†       -> f3 graph3
        """
    )


def list_operands(wiring: Wiring, schedule: Schedule, *actions: str, replicas: int = 1) -> str:
    """The operands of some actions, without the marks of who takes what."""
    operands = find_operands(wiring, schedule, replicas)
    return " | ".join(f"{action}: {operands[Action.parse(action)]}" for action in actions)


def test_gradients_of_later_flows_are_summed_apart() -> None:
    """Two flows in two micro-batches add four gradients, whose order would depend on messages."""
    wiring = wire_mlp(lp.BackwardLinks(1), 4, 2, weight_gradients="each")
    schedule = Schedule.compile(wiring, microbatches=2)
    assert list_operands(wiring, schedule, "1B.0", "1B1.1", "1S") == (
        "1B.0: graph1 g1.0<1L leaf1 -> G1 g0<1B.0 | 1B1.1: graph1/1 g1.1<2B/1 -> G1.1 | "
        "1S: G1 G1.1 ->"
    )
    assert find_flows_set_apart(wiring, 2) == {1: [(1, 1)]}


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (lp.LocalCredit(), {}),  # one flow: in the order of micro-batches
        (lp.InterlockingCredit(2), {}),  # two flows, of which one trains
        (lp.BackwardLinks(1), {1: [(1, 1)], 3: [(3, 1)]}),
    ],
    ids=str,
)
def test_only_second_flows_that_train_are_summed_apart(
    credit: Credit, expected: dict[int, list[tuple[int, int]]]
) -> None:
    wiring = wire_mlp(credit, 6, 3, weight_gradients="each")
    assert find_flows_set_apart(wiring, 1) == {}  # a sum of two has no order
    assert find_flows_set_apart(wiring, 2) == expected
    # Of weights made once there is one gradient in each micro-batch.
    assert find_flows_set_apart(wire_mlp(credit, 6, 3), 2) == {}


def test_sums_over_replicas_read_what_the_step_reads() -> None:
    wiring = wire_mlp(lp.LocalCredit(), 2, 2)
    (schedule,) = lower(wiring, Placement((range(2),)), replicas=2)
    chosen = ("0REDUCE_H", "0H", "0REDUCE_S", "0S'")
    assert list_operands(wiring, schedule, *chosen, replicas=2) == (
        "0REDUCE_H: H0 -> | 0H: H0 -> | 0REDUCE_S: G0 -> | 0S': G0 ->"
    )


class Observing(lp.LocalLoss):
    """A loss that looks at an inner output, and at the input of its module."""

    def __init__(self, *taps: str, module_input: bool = False) -> None:
        super().__init__()
        self.taps, self.module_input = taps, module_input

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        return features.square().mean()


def observe_second_linear(point: AttachPoint) -> lp.LocalLoss:
    """For an MLP, whose layers are pairs of modules: the linear map of layer 1 is the module 2."""
    return Observing(*(["2"] if point.module == 0 else []), module_input=point.module == 1)


def test_inner_outputs_and_inputs_of_modules() -> None:
    """The gradient at an inner output goes to the flow that carries the loss."""
    wiring = wire_rule(lp.Rule(lp.LocalCredit(), loss=observe_second_linear), 6, 3)
    lines = print_liveness(wiring)
    assert select(lines, "0F", "0L", "0B", "1F", "1L") == split_lines(
        """
        0F    x                     -> h0 f0 graph0 t:2 e:2
        0L    f0† x y t:2†          -> loss0 H0 g0<0L d:2<0L
        0B    graph0† g0<0L† e:2† d:2<0L† -> G0
        1F    h0†                   -> h1 f1 i1 graph1
        1L    f1† x y i1†           -> loss1 H1 g1<1L
        """
    )


def test_an_inner_output_of_a_segment_with_two_flows() -> None:
    """Only the flow that carries the loss needs its place in the graph, which both share."""
    wiring = wire_rule(lp.Rule(lp.BackwardLinks(1), loss=observe_second_linear), 4, 2)
    lines = print_liveness(wiring)
    assert select(lines, "1F", "1L", "1B.0", "1B.1") == split_lines(
        """
        1F    h0†                   -> h1 f1 graph1 leaf1 t:2 e:2
        1L    f1† x y t:2†          -> loss0 H0 g1.0<1L d:2.0<1L
        1B.0  graph1 g1.0<1L† e:2† d:2.0<1L† leaf1† -> G1 g0<1B.0
        1B.1  graph1† g1.1<2B†      -> G1
        """
    )
    rule = lp.Rule(lp.BackwardLinks(1), loss=observe_second_linear)
    lines = print_liveness(wire_rule(rule, 4, 2, weight_gradients="once"))
    assert select(lines, "1B.0", "1W") == split_lines(
        """
        1B.0  graph1 g1.0<1L† e:2 d:2.0<1L leaf1† -> gw1.0 g0<1B.0
        1W    graph1† gw1.0† g1.1<2B† e:2† d:2.0<1L† -> G1
        """
    )


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(Kind.INPUT), "x"),
        (Value(Kind.INPUT, microbatch=2), "x/2"),
        (Value(Kind.OUTPUT, 2), "h2"),
        (Value(Kind.TAP, "blocks.1.bn"), "t:blocks.1.bn"),
        (Value(Kind.TAP_GRADIENT, "name", 1, "3L"), "d:name.1<3L"),
        (Value(Kind.GRADIENT, 2, 1, "3B", 4), "g2.1<3B/4"),
        (Value(Kind.KEPT_GRADIENT, 2, 1, microbatch=4), "gw2.1/4"),
        (Value(Kind.WEIGHT_GRADIENT, 2, 0), "G2.0"),
    ],
    ids=str,
)
def test_values_as_text(value: Value, text: str) -> None:
    assert str(value) == text


def test_operands_as_text() -> None:
    h0, g0 = Value(Kind.OUTPUT, 0), Value(Kind.GRAPH, 0)
    assert str(Operands((h0, g0), (g0,))) == "h0 graph0 -> graph0"
    assert str(Operands((h0,))) == "h0 ->"
    assert str(Operands((), (h0,))) == "-> h0"
    assert str(Operands()) == "->"


def test_a_gradient_is_named_after_its_maker_in_any_batch_and_micro_batch() -> None:
    wiring = wire_mlp(lp.BackwardLinks(1), 4, 2)
    makers = {"1L": "g1.0<1L", "1L3": "g1.0<1L/3", "1B.0": "g0<1B.0", "2B2'": "g1.1<2B/2"}
    assert {text: str(name_gradient(wiring, Action.parse(text))) for text in makers} == makers


def test_the_context_of_module_0_is_the_input_of_the_network() -> None:
    assert [str(name_context(module, 1)) for module in (0, 2)] == ["x/1", "c2/1"]
