"""A record of what training computes: run it before and after a change that must not move a bit.

Every method, and some combinations, train an MLP, ResNet-8, a ViT and a language model for three
steps. Each of them stores activations or recomputes them, and takes a batch whole or in two
micro-batches. A record holds the losses, and hashes of the values of parameters and buffers in the
order of the modules. A refusal is recorded as one. Names of parameters do not enter, so renaming
them changes nothing.

    python benchmarks/record.py before.json                            # one process
    torchrun --nproc-per-node 2 benchmarks/record.py before-2.json     # two ranks
    python benchmarks/record.py --compare before.json after.json       # exit code 1 if they differ

The hashes are valid on one machine and with one version of torch only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

import localprop as lp
from localprop import methods
from localprop.ranks.launch import get_rank, get_world_size

STEPS = 3
Batches = list[tuple[Tensor, Tensor]]


def train_three_modules_back(partition: lp.Partition) -> lp.CreditTable:
    """A table in which each loss trains its own module and the two before it.

    An even loss passes through the module before its own without training it. So the gradients of
    three losses meet in a module.
    """
    layers = [partition.module_of(layer) for layer in range(len(partition.layers))]
    train, pass_through = lp.Entry(train=True), lp.Entry(train=False)

    def choose_entry(loss: int, module: int) -> lp.Entry | None:
        distance = loss - module
        if distance == 1 and loss % 2 == 0:
            return pass_through if module > 0 else None
        return train if distance in (0, 1, 2) else None

    losses = range(len(partition.modules))
    rows = tuple(tuple(choose_entry(loss, module) for module in layers) for loss in losses)
    return lp.CreditTable(tuple(map(len, partition.modules)), rows)


def build_linear_encoder(source: object, from_shape: torch.Size, to_shape: torch.Size) -> nn.Module:
    """A context encoder between vectors or tokens, for networks without maps."""
    if len(from_shape) != len(to_shape) or from_shape[1:-1] != to_shape[1:-1]:
        raise lp.BadInput("A linear encoder keeps positions.")
    return nn.Linear(from_shape[-1], to_shape[-1])


def build_rules() -> dict[str, lp.Rule]:
    """The methods with their defaults, their variants, and combinations."""
    named = {name: getattr(methods, name)() for name in methods.__all__}
    context = lp.ContextSupply(input=True, previous=1)
    return named | {
        "backlink, far": lp.backlink(layers=3, weight=0.5, cross_modules=True),
        "backlink, only": lp.backlink(layers=1, combine="only"),
        "backlink, mean": lp.backlink(layers=1, combine="mean"),
        "interlocking, 3": lp.interlocking(wise=3),
        "auglocal, copies": lp.auglocal(depth=1, unit="copy"),
        "contsup, R2": lp.contsup(input=False, previous=2),
        "contsup, contrast": lp.contsup(aux=lp.Head(outputs=32), loss=lp.ContrastiveLoss()),
        "windows, 3": lp.windows(size=3),
        "man, reconstruction": lp.man(
            loss=lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0), lp.Term()))
        ),
        "trgl, growing": lp.trgl(growth=1.0, every=2, plain=True),
        "sgr, cosine": lp.sgr(distance="cosine"),
        "three modules back": lp.Rule(credit=train_three_modules_back),
        "links, context, sampled": lp.Rule(lp.BackwardLinks(), lp.SampledLayers(), context=context),
        "links, context": lp.Rule(lp.BackwardLinks(), context=context),
        "linear context": lp.Rule(
            lp.BackwardLinks(), context=lp.ContextSupply(True, 1, encoder=build_linear_encoder)
        ),
        "interlocked, context": lp.Rule(lp.InterlockingCredit(wise=2), context=context),
        "windows, kinetic": lp.Rule(lp.WindowCredit(), penalty=lp.KineticPenalty(plain=True)),
        "links, copied head": lp.Rule(lp.BackwardLinks(), lp.NextLayerHead()),
        "links, reconstruction": lp.Rule(lp.BackwardLinks(2), loss=lp.FeatureReconstruction()),
    }


def build_vit() -> nn.Module:
    """A small ViT of timm's, with dropout."""
    import timm

    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=32,
        depth=6,
        num_heads=2,
        num_classes=10,
        proj_drop_rate=0.1,
    )
    return model


def draw_images(*shape: int) -> Batches:
    """Noise. The last batch is smaller, and its size is odd."""
    generator = torch.Generator().manual_seed(1)
    sizes = (8, 8, 7)
    return [
        (torch.randn(n, *shape, generator=generator), torch.randint(10, (n,), generator=generator))
        for n in sizes
    ]


def draw_tokens() -> Batches:
    """Random text."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(32, (n, 9), generator=generator) for n in (6, 6, 5)]
    return [(text[:, :-1], text[:, 1:].clone()) for text in texts]


def build_language_model() -> nn.Module:
    """A small language model with dropout."""
    return lp.models.transformer_lm(
        vocabulary=32, context=8, width=16, heads=2, blocks=4, dropout=0.1
    )


def build_mlp() -> nn.Module:
    """Three hidden layers."""
    return lp.models.mlp(in_features=12, hidden=(16, 16, 16))


# By name: the model, its batches, and the number of modules.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches], int]] = {
    "mlp": (build_mlp, lambda: draw_images(12), 4),
    "resnet8": (lp.models.resnet8, lambda: draw_images(3, 8, 8), 4),
    "vit": (build_vit, lambda: draw_images(3, 16, 16), 5),
    "lm": (build_language_model, draw_tokens, 5),
}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """A hash of the values of tensors, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_learner(
    network: str, rule: lp.Rule, sample: tuple[Tensor, Tensor], recompute: bool, microbatches: int
) -> lp.Learner:
    """A learner of one of the networks."""
    build, _, modules = NETWORKS[network]
    torch.manual_seed(0)
    return lp.Learner(
        build(),
        rule,
        modules=modules,
        optimizer=sgd,
        sample=sample,
        recompute=recompute,
        microbatches=microbatches,
        normalization=None if network == "lm" else lp.Normalization(),
    )


def train(learner: lp.Learner, batches: Batches) -> list[float]:
    """Train on the batches. Returns all losses, those of the first step first."""
    losses: dict[Any, float] = {}
    for number, batch in enumerate(batches):
        step_losses = learner.step(batch)
        for loss, value in zip(step_losses.rows, step_losses, strict=True):
            losses[f"{number} {loss}"] = float(value)
    # On several ranks, each knows the losses of its own stage.
    return [value for _, value in sorted(learner.total(losses).items())]


def hash_heads(learner: lp.Learner) -> list[str]:
    """A hash of the auxiliary networks on each rank."""
    pipeline, state = learner.pipeline, learner.heads.state_dict()
    if pipeline is None:
        return [hash_tensors(state.values())]
    owned = [
        value
        for name, value in state.items()
        if pipeline.owner("heads", name) == pipeline.mesh.stage
    ]
    hashes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hashes, hash_tensors(owned))
    return hashes


def record(network: str, rule: lp.Rule, *, recompute: bool, microbatches: int) -> dict[str, Any]:
    """Train for some steps, and record the losses and the hashes of what was trained."""
    batches = NETWORKS[network][1]()[:STEPS]
    try:
        learner = build_learner(network, rule, batches[0], recompute, microbatches)
        losses = train(learner, batches)
        deployed = learner.gather()
    except lp.BadInput as error:
        return {"refused": type(error).__name__}
    # Only the first rank has the gathered network.
    tensors = [] if deployed is None else [*deployed.parameters(), *deployed.buffers()]
    return {
        "losses": [value.hex() for value in losses],
        "network": "" if deployed is None else hash_tensors(tensors),
        "heads": hash_heads(learner),
    }


def start_process_groups() -> Iterator[None]:
    """Start a process group for each configuration, on several ranks."""
    # A group of its own for each, since a refusal on one rank can leave messages under way.
    store, _, _ = next(rendezvous("env://"))
    for number in itertools.count():
        own = PrefixStore(str(number), store)
        dist.init_process_group("gloo", store=own, rank=get_rank(), world_size=get_world_size())
        yield
        dist.barrier()  # a rank that is refused at once must not leave while others connect
        dist.destroy_process_group()


def record_all() -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of all configurations, each with a name."""
    groups = start_process_groups() if get_world_size() > 1 else itertools.repeat(None)
    for network, (name, rule) in itertools.product(NETWORKS, build_rules().items()):
        for recompute, microbatches in itertools.product((False, True), (1, 2)):
            memory = "recomputed" if recompute else "stored"
            next(groups)
            values = record(network, rule, recompute=recompute, microbatches=microbatches)
            yield f"{network}: {name}: {memory}, {microbatches} micro-batch(es)", values


def compare(one: Path, other: Path) -> int:
    """Print where two records differ. Returns 1 if they do."""
    before, after = (json.loads(path.read_text()) for path in (one, other))
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    refused = sum("refused" in values for values in after.values())
    print(f"{len(after)} configurations, {refused} of them refused; {len(differing)} differ")
    print("\n".join(differing))
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.compare:
        return compare(*args.files)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records = {}
    for name, values in record_all():
        records[name] = values
        print(name, values.get("refused", values.get("network")), file=sys.stderr, flush=True)
    if get_rank() == 0:
        args.files[0].write_text(json.dumps(records, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
