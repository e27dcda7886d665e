"""A record of what training computes: run it before and after a change that must not move a bit.

Every method, and some combinations, train an MLP, ResNet-8, a ViT and a language model for three steps: stored and
recomputed, whole and in two micro-batches. A line holds the losses, and hashes of the values of parameters and buffers in
the order of the modules; a refusal is recorded as one. Names do not enter, so that renaming changes nothing.

    python benchmarks/record.py before.json                                  # one process
    torchrun --nproc-per-node 2 benchmarks/record.py before-2.json           # two ranks
    python benchmarks/record.py --compare before.json after.json             # exit code 1 where they differ

The hashes hold on one machine and one version of torch only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

import localprop as lp
from localprop import methods
from localprop.ranks.launch import rank, world

STEPS = 3
Batches = list[tuple[Tensor, Tensor]]


def three_makers(partition: lp.Partition) -> lp.CreditTable:
    """Losses train their own module, the one before (odd losses only) and the one before that: errors of three meet there."""
    layers = [partition.module_of(layer) for layer in range(len(partition.layers))]
    train, passed = lp.Entry(train=True), lp.Entry(train=False)

    def entry(k: int, module: int) -> lp.Entry | None:
        behind = k - module
        if behind == 1 and k % 2 == 0:
            return passed if module > 0 else None
        return train if behind in (0, 1, 2) else None

    rows = tuple(tuple(entry(k, module) for module in layers) for k in range(len(partition.modules)))
    return lp.CreditTable(tuple(map(len, partition.modules)), rows)


def linear_encoder(source: object, from_shape: torch.Size, to_shape: torch.Size) -> nn.Module:
    """From vectors or tokens to vectors or tokens, for networks without maps."""
    if len(from_shape) != len(to_shape) or from_shape[1:-1] != to_shape[1:-1]:
        raise lp.BadInput("A linear encoder keeps positions.")
    return nn.Linear(from_shape[-1], to_shape[-1])


def rules() -> dict[str, lp.Rule]:
    """The methods with their defaults, their variants, and combinations."""
    named = {name: getattr(methods, name)() for name in methods.__all__}
    context = lp.ContextSupply(input=True, previous=1)
    return named | {
        "backlink, far": lp.backlink(layers=3, weight=0.5, spill=True),
        "backlink, only": lp.backlink(layers=1, combine="only"),
        "backlink, mean": lp.backlink(layers=1, combine="mean"),
        "interlocking, 3": lp.interlocking(wise=3),
        "auglocal, copies": lp.auglocal(depth=1, unit="copy"),
        "contsup, R2": lp.contsup(input=False, previous=2),
        "contsup, contrast": lp.contsup(aux=lp.Head(outputs=32), loss=lp.Contrastive()),
        "windows, 3": lp.windows(size=3),
        "man, reconstruction": lp.man(loss=lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0), lp.Term()))),
        "trgl, growing": lp.trgl(growth=1.0, every=2, plain=True),
        "sgr, cosine": lp.sgr(distance="cosine"),
        "three makers": lp.Rule(credit=three_makers),
        "links, context, sampled": lp.Rule(lp.BackwardLinks(), lp.SampledLayers(), context=context),
        "links, context": lp.Rule(lp.BackwardLinks(), context=context),
        "linear context": lp.Rule(lp.BackwardLinks(), context=lp.ContextSupply(True, 1, encoder=linear_encoder)),
        "interlocked, context": lp.Rule(lp.Interlocked(wise=2), context=context),
        "windows, kinetic": lp.Rule(lp.Windows(), penalty=lp.Kinetic(plain=True)),
        "links, borrowed": lp.Rule(lp.BackwardLinks(), lp.NextLayerHead()),
        "links, reconstruction": lp.Rule(lp.BackwardLinks(2), loss=lp.FeatureReconstruction()),
    }


def vit() -> nn.Module:
    """A small ViT of timm's, with dropout."""
    import timm

    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=10, proj_drop_rate=0.1
    )
    return made


def images(*shape: int) -> Batches:
    """Noise; the last batch is smaller, and odd."""
    generator = torch.Generator().manual_seed(1)
    sizes = (8, 8, 7)
    return [
        (torch.randn(n, *shape, generator=generator), torch.randint(10, (n,), generator=generator)) for n in sizes
    ]


def tokens() -> Batches:
    """Random text."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randint(32, (n, 9), generator=generator) for n in (6, 6, 5)]
    return [(each[:, :-1], each[:, 1:].clone()) for each in draws]


def lm() -> nn.Module:
    """A small language model with dropout."""
    return lp.models.transformer_lm(vocabulary=32, context=8, width=16, heads=2, blocks=4, dropout=0.1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches], int]] = {
    "mlp": (lambda: lp.models.mlp(in_features=12, hidden=(16, 16, 16)), lambda: images(12), 4),
    "resnet8": (lp.models.resnet8, lambda: images(3, 8, 8), 4),
    "vit": (vit, lambda: images(3, 16, 16), 5),
    "lm": (lm, tokens, 5),
}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """With momentum."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def digest(tensors: Iterator[Tensor]) -> str:
    """A hash of values in their order."""
    made = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def record(network: str, rule: lp.Rule, *, recompute: bool, microbatches: int) -> dict[str, Any]:
    """Train for some steps, and write down what came out."""
    build, batches, modules = NETWORKS[network]
    torch.manual_seed(0)
    model, data = build(), batches()
    try:
        learner = lp.Learner(
            model,
            rule,
            modules=modules,
            optimizer=sgd,
            sample=data[0],
            recompute=recompute,
            microbatches=microbatches,
            normalised=None if network == "lm" else lp.Normalised(),
        )
        losses: dict[Any, float] = {}
        for step, batch in enumerate(data[:STEPS]):
            of_step = learner.step(batch)
            losses |= {f"{step} {k}": float(value) for k, value in zip(of_step.numbers, of_step, strict=True)}
        losses = {key: value for key, value in sorted(learner.total(losses).items())}
        deployed, pipeline = learner.gather(), learner.pipeline
    except lp.BadInput as refused:
        return {"refused": type(refused).__name__}
    heads = [
        value
        for name, value in learner.heads.state_dict().items()
        if pipeline is None or pipeline.owner("heads", name) == pipeline.mesh.stage
    ]
    own = [digest(iter(heads))]
    if pipeline is not None:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, own[0])
        own = gathered
    return {
        "losses": [value.hex() for value in losses.values()],
        "network": digest(iter([*deployed.parameters(), *deployed.buffers()])) if deployed is not None else "",
        "heads": own,
    }


def process_groups() -> Iterator[None]:
    """A process group of its own for each configuration, on several ranks."""
    store, _, _ = next(rendezvous("env://"))
    for number in itertools.count():
        own = dist.PrefixStore(str(number), store)
        dist.init_process_group("gloo", store=own, rank=rank(), world_size=world())
        yield
        dist.destroy_process_group()


def records() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them, each with a name."""
    groups = process_groups() if world() > 1 else itertools.repeat(None)
    for network, (name, rule) in itertools.product(NETWORKS, rules().items()):
        for recompute, microbatches in itertools.product((False, True), (1, 2)):
            way = f"{'recomputed' if recompute else 'stored'}, {microbatches} micro-batch(es)"
            next(groups)
            yield f"{network}: {name}: {way}", record(network, rule, recompute=recompute, microbatches=microbatches)


def compare(one: Path, other: Path) -> int:
    """Say where two records differ; 1 if they do."""
    before, after = (json.loads(path.read_text()) for path in (one, other))
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    refused = sum("refused" in each for each in after.values())
    print(f"{len(after)} configurations, {refused} of them refused; {len(differing)} differ")
    print("\n".join(differing))
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.compare:
        return compare(*args.files)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {}
    for name, values in records():
        found[name] = values
        print(name, values.get("refused", values.get("network")), file=sys.stderr, flush=True)
    if rank() == 0:
        args.files[0].write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
