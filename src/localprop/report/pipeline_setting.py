"""The setting in which pipelines are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import SGD

from localprop.cost.timing import LinkModel
from localprop.data.dataset import Normalization
from localprop.errors import BadInput, check, collect_problems
from localprop.learner import Learner
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.ranks.pipeline import Ranks
from localprop.report.image_setting import ImageSetting
from localprop.report.method_spec import MethodSpec
from localprop.report.value_checks import (
    BYTES_PER_SECOND,
    SECONDS,
    find_range_problems,
    is_count,
    parse_quantity,
)
from localprop.schedule.placement import Placement, estimate_module_costs, find_placement_problems
from localprop.tasks.batch import Batch

END_TO_END = MethodSpec.parse("end_to_end()")

# What modules have equal numbers of.
CUTS = ("seconds", "layers")


@dataclass(frozen=True)
class PipelineSetting(ImageSetting):
    """A network, its batch, and the devices of a pipeline.

    Attributes:
        batch: samples that one pipeline takes in a step.
        modules: local modules; None means one per rank.
        ranks: devices of one pipeline.
        replicas: pipelines, each with its own batch.
        microbatches: into which each pipeline splits its batch.
        link: bytes per second between two devices.
        latency: of a message.
        cuts: "seconds" for modules that take equal time, "layers" for modules with equal numbers
            of layers.
        rounds: of the measurement.
    """

    batch: int = 128
    modules: int | None = None
    ranks: int = 4
    replicas: int = 1
    microbatches: int = 4
    link: str = "25GB/s"
    latency: str = "10us"
    cuts: str = "seconds"
    rounds: int = 5

    def find_problems(self) -> list[str]:
        """Find all problems with the values; one sentence each.

        Example:
            >>> PipelineSetting(ranks=0, link="fast").find_problems()[0]
            'ranks=0 must be a whole number of 1 or more.'
        """
        names = ("classes", "batch", "ranks", "replicas", "microbatches", "rounds")
        return [
            *find_range_problems(**{name: (getattr(self, name), 1) for name in names}),
            *self._find_modules_problems(),
            *self._find_microbatch_problems(),
            *self._find_link_problems(),
            *super().find_problems(),
        ]

    def _find_modules_problems(self) -> list[str]:
        if self.modules is None:
            return []
        if not is_count(self.modules):
            return find_range_problems(modules=(self.modules, 1))
        if is_count(self.ranks) and self.modules < self.ranks:
            return [
                f"modules={self.modules} are too few for ranks={self.ranks}: each rank needs a "
                "module of its own."
            ]
        return []

    def _find_microbatch_problems(self) -> list[str]:
        size, count = self.batch, self.microbatches
        if not is_count(size) or not is_count(count) or size % count == 0:
            return []
        divisible = max(1, size // count) * count
        return [
            f"batch={size} cannot be split into {count} equal micro-batches: take {divisible} or "
            f"{divisible + count}."
        ]

    def _find_link_problems(self) -> list[str]:
        problems: list[str] = []
        with collect_problems(problems):
            if parse_quantity("link", self.link, BYTES_PER_SECOND, "25GB/s") == 0:
                problems.append(f"link={self.link!r} carries nothing: give a speed above 0.")
        with collect_problems(problems):
            parse_quantity("latency", self.latency, SECONDS, "10us")
        if self.cuts not in CUTS:
            problems.append(f"cuts={self.cuts!r} is unknown: choose {' or '.join(CUTS)}.")
        return problems

    @property
    def module_count(self) -> int:
        """The number of local modules."""
        return self.modules or self.ranks

    @property
    def microbatch_size(self) -> int:
        """Samples per micro-batch."""
        return self.batch // self.microbatches

    @property
    def link_model(self) -> LinkModel:
        """The model of every link."""
        return LinkModel(
            parse_quantity("link", self.link, BYTES_PER_SECOND, "25GB/s"),
            parse_quantity("latency", self.latency, SECONDS, "10us"),
        )

    def make_microbatch(self) -> Batch:
        """Random images and labels of one micro-batch."""
        return self.make_images(self.microbatch_size)

    def find_layers(self) -> Layers:
        """Find the layers of the network.

        Raises:
            BadInput: if the network has fewer layers than modules.
        """
        layers = layers_of(self.make_network(), self.make_microbatch())
        if self.module_count > len(layers):
            raise BadInput(
                f"{self.model} has {len(layers)} layer(s), too few for {self.module_count} "
                "modules: use fewer ranks and modules."
            )
        return layers

    def make_learner(self, spec: MethodSpec, layers: Layers, cuts: Sequence[int]) -> Learner:
        """A new network and a learner that trains it in one process, one micro-batch per step.

        Raises:
            BadInput: if the network or the cuts do not allow the method.
        """
        return Learner(
            self.make_network(),
            parse_rule(spec.method),
            partition=Partition(layers, tuple(cuts)),
            optimizer=lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
            sample=self.make_microbatch(),
            **spec.options,
            atomic=False,  # as on ranks
            # Losses of pixels need a normalisation. No cost depends on its values.
            normalization=Normalization(),
            ranks=Ranks(alone=True),
        )

    def check_method(self, spec: MethodSpec, layers: Layers) -> None:
        """Check, before anything is measured, that a pipeline can train the network with a method.

        The check cuts modules and ranks of equal numbers of layers.

        Raises:
            BadInput: if it cannot.
        """
        cuts = Partition.uniform(layers, self.module_count).cuts
        wiring = self.make_learner(spec, layers, cuts).wiring
        placement = Placement.balanced(wiring, self.ranks, estimate_module_costs(wiring))
        check(find_placement_problems(wiring, placement))
