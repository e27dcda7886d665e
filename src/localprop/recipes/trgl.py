"""TRGL and the plain local learning of its tables, and feature reconstruction (Pathak et al.), whose figures stand there too.

Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the Minimizing Movement Scheme (TRGL),
NeurIPS 2023, text and official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe, noted
from localprop.recipes.tables import ends
from localprop.training.config import Config

PAPER = "Karkar et al., TRGL, NeurIPS 2023"
SCORES = (
    "The official code's score is a maximum over epochs and modules on one half of the test set, and its last module has a head "
    "like the others."
)
SCORES_E2E = "The official code's score is a maximum over epochs on one half of the test set."
ORTHOGONAL = "It draws weights orthogonally with gain 0.1, here they are those of the other ResNets."
CONVOLUTIONAL, CONVOLUTIONAL_E2E = f"{SCORES} {ORTHOGONAL}", f"{SCORES_E2E} {ORTHOGONAL}"
# Per channel, mean and standard deviation.
MOMENTS = {
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "folder:tiny-imagenet-200": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}
# fmt: off
# STL-10, ResNet-110: blocks of each module, accuracy in % and 95 % interval of plain local learning and of TRGL.
STL10 = {
    "k2": ((27, 27), "79.85 +- 0.93", "80.04 +- 0.85"),
    "k4": ((14, 14, 13, 13), "77.11 +- 2.31", "79.72 +- 0.81"),
    "k8": ((7, 7, 7, 7, 8, 6, 6, 6), "75.71 +- 0.55", "77.82 +- 0.73"),
    "k16": ((4,) * 6 + (3,) * 10, "73.57 +- 0.95", "77.22 +- 1.20"),
    "balanced_k2": ((14, 40), "79.05", "79.47"),
    "balanced_k4": ((6, 8, 12, 28), "77.14", "78.94"),
}
# CIFAR-100, 2 modules, and TinyImageNet, 4 modules: blocks of each module; accuracy in % end-to-end, plain and TRGL. The pools
# of the heads are those of the official code, by the size of maps.
CIFAR100 = {
    "resnet101": ((17, 16), ("76.52", "77.31", "77.87")),
    "resnet152": ((25, 25), ("74.80", "75.40", "76.55")),
}
TINYIMAGENET = {
    "resnet50": ((3, 4, 6, 3), ("58.10", "58.43", "60.30")),
    "resnet101": ((7, 9, 9, 8), ("62.01", "63.64", "63.71")),
    "resnet152": ((11, 13, 13, 13), ("62.32", "63.87", "64.23")),
    "vgg19": ((), ("58.74", "56.17", "57.28")),
}
SWIN = {  # accuracy in % of Swin-T in 4 modules
    "stl10": {"e2e": "72.19", "plain": "67.00", "trgl": "67.92", "pathak": "66.89"},
    "cifar10": {"e2e": "91.37", "plain": "83.94", "trgl": "86.48", "pathak": "86.28"},
    "cifar100": {"e2e": "75.03", "plain": "69.34", "trgl": "74.11", "pathak": "73.00"},
}
# CIFAR-100, ResNet-101, one module after the other: accuracy in % of plain and TRGL.
IN_TURN = {"sequential": ("73.31", "73.61"), "multilap": ("74.34", "74.78")}
# fmt: on
ROWS = ("e2e", "plain", "trgl")
POOLS = {"resnet50": (16, 8, 8, 4), "resnet101": (8, 8, 8, 4), "resnet152": (8, 8, 8, 4), "vgg19": (8, 8, 8, 4)}
VGG = (
    "The VGG-19 of the paper, its cuts and heads, and what its layers are penalised for, are not in the official code: all are "
    "our reading."
)
# Where the official code has end-to-end training.
E2E_SCRIPTS = ("resnet101_cifar100", "resnet152_tinyimagenet")
E2E_READING = (
    "The official code has no end-to-end training of this network on these data: the setting of its other scripts is our "
    "reading."
)
FIRST_MULTIPLIER = (
    "In the official code the multiplier of the first module is 1 up to its first growth, and then begins from 0 and not "
    "from 1."
)
IN_TURN_READING = (
    "The learning rate, the batch and the penalty of modules in turn are not known to us: those of CIFAR-100's parallel training "
    "are our reading."
)
IN_LAPS = "The official code sets the multiplier back to 1 in each lap, here it grows on."
SWIN_NOTES = (
    "The official Swin-T has windows of 8 and drops paths at rates of up to 0.1, torchvision's has 7 and 0.2; it has no weight "
    "decay on biases, norms and position biases, and steps the learning rate per batch. It trains in fp16, here in fp32, and "
    "clips the gradient of a module with its head to a norm of 5, here those of the module and of the head apart."
)
SWIN_READING = (
    "The learning rate is 0.007 in the official README; in its script it is 0.5, and falls to 0.05 and not to 0. The README's is "
    "our reading."
)
SWIN_STL10 = (
    "The official script does not take STL-10, whose maps of 12x12 its windows of 8 do not divide: images of 96 pixels are our "
    "reading."
)
SWIN_E2E = "Label smoothing of end-to-end training is not stated: none is our reading."


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield stl10_end_to_end()
    yield from (stl10(row, local) for row in STL10 for local in ROWS[1:])
    yield from (cifar100(network, row) for network in CIFAR100 for row in ROWS)
    yield from (tinyimagenet(network, row) for network in TINYIMAGENET for row in ROWS)
    yield from (imagenet(row) for row in ROWS)
    yield from (swin(data, row) for data in SWIN for row in SWIN[data])
    yield from (in_turn(form, row) for form in IN_TURN for row in ROWS[1:])


def setting(data: str) -> Config:
    """SGD with momentum and a constant learning rate."""
    stl, (mean, std) = data == "stl10", MOMENTS.get(data, (None, None))
    return Config(
        data=data,
        augment="crop,flip" if "tiny" in data else None,
        padding="zeros" if data in MOMENTS else None,
        mean=mean,
        std=std,
        batch_size=64 if stl else 256,
        lr=0.002 if stl else 0.003,
        nesterov=False,
        weight_decay=2e-4,
        label_smoothing=0.1,
        lr_schedule="constant",
        epochs=300,
        validation=0.0,
    )


def whole(data: str) -> Config:
    """The setting of end-to-end training: that of the official scripts for CIFAR-100 and TinyImageNet."""
    return replace(
        setting(data),
        method="end_to_end()",
        modules=1,
        lr=0.1,
        weight_decay=1e-4,
        lr_schedule="multistep",
        milestones=(120, 160, 200),
        lr_factor=0.2,
    )


def local_method(row: str, tau: float, late: float = 1.0, aux: str = "OneConvHead()", plain: bool = False) -> str:
    """Plain local learning, or TRGL with a tau that is multiplied by `late` in the second half of the modules."""
    if row == "plain":
        return f"Rule(aux={aux}, loss=CrossEntropy(label_smoothing=0.1))"
    return f"trgl(tau={tau}, late={late}, plain={plain}, aux={aux})"


def growing_method(row: str) -> str:
    """Plain local learning, or TRGL with the growing multiplier of the CIFAR-100 table."""
    aux = f"OneConvHead(pools={POOLS['resnet101']})"
    return (
        f"trgl(tau=0.5, late=1.0, growth=1.0, every=50, aux={aux})"
        if row == "trgl"
        else local_method(row, 0.5, aux=aux)
    )


def stl10_end_to_end() -> Recipe:
    """The reference of the STL-10 rows."""
    config = replace(whole("stl10"), model="resnet110:shortcut=pad")
    name, published = "resnet110_stl10_trgl_baseline_e2e", "test accuracy 77.73 %"
    return Recipe(name, config, PAPER, published, notes=CONVOLUTIONAL_E2E, readings=E2E_READING)


def stl10(row: str, local: str) -> Recipe:
    """ResNet-110 with shortcuts without parameters."""
    sizes, plain, trgl = STL10[row]
    tau = 50.0 if row == "k2" else 0.5
    method = local_method(local, tau, late=2.0)
    config = replace(setting("stl10"), model="resnet110:shortcut=pad", method=method, cuts=ends(sizes))
    balanced = row.startswith("b")
    own = "tau of the balanced rows is not stated: 0.5, then 1, is our reading." if balanced and local == "trgl" else ""
    which = (
        "Which figure belongs to which number of modules is inferred from InfoPro's figures beside them."
        if balanced
        else ""
    )
    interval = "" if balanced else ", 95 % interval"
    published = f"test accuracy {trgl if local == 'trgl' else plain} %{interval}"
    name = f"resnet110_stl10_{_named(local)}_{row}"
    return Recipe(name, config, PAPER, published, notes=CONVOLUTIONAL, readings=noted(own, which))


def cifar100(network: str, row: str) -> Recipe:
    """ResNet-101 and ResNet-152 in two modules."""
    sizes, accuracies = CIFAR100[network]
    local = replace(setting("cifar100"), method=growing_method(row), cuts=ends(sizes))
    config = replace(whole("cifar100") if row == "e2e" else local, model=f"{network}_cifar")
    name = f"{network}_cifar100_{_named(row)}" + ("" if row == "e2e" else "_k2")
    notes = _notes(row, FIRST_MULTIPLIER if row == "trgl" else "")
    readings = _e2e_reading(row, f"{network}_cifar100")
    return Recipe(name, config, PAPER, f"test accuracy {accuracies[ROWS.index(row)]} %", notes=notes, readings=readings)


def tinyimagenet(network: str, row: str) -> Recipe:
    """TinyImageNet, 64x64 and 200 classes, in four modules; the stem of the ResNets halves its images."""
    sizes, accuracies = TINYIMAGENET[network]
    data, vgg = "folder:tiny-imagenet-200", network == "vgg19"
    method = local_method(row, 500000.0, late=2.0, aux=f"OneConvHead(pools={POOLS[network]})", plain=vgg)
    config = whole(data) if row == "e2e" else replace(setting(data), method=method)
    config = replace(config, model=network if vgg else f"{network}_cifar:kernel=7", image_size=64)
    if row != "e2e":
        config = replace(config, cuts=ends(sizes)) if sizes else replace(config, modules=4)
    name = f"{network}_tinyimagenet_{_named(row)}" + ("" if row == "e2e" else "_k4")
    readings = noted(VGG if vgg else "", _e2e_reading(row, f"{network}_tinyimagenet"))
    published = f"test accuracy {accuracies[ROWS.index(row)]} %"
    return Recipe(name, config, PAPER, published, notes=_notes(row), readings=readings)


def imagenet(row: str) -> Recipe:
    """ResNet-101 in two modules."""
    data = "folder:imagenet"
    method = local_method(row, 500000.0, late=2.0, aux="OneConvHead(pools=(8, 8, 8, 4))")
    config = replace(setting(data), method=method, cuts=ends(CIFAR100["resnet101"][0])) if row != "e2e" else whole(data)
    accuracy = dict(zip(ROWS, ("78.71", "78.11", "79.41"), strict=True))[row]
    name = f"resnet101_imagenet_{_named(row)}" + ("" if row == "e2e" else "_k2")
    notes = "The official code scales images to 256 pixels, crops 224 at random and flips; here a crop of random area is scaled."
    readings = "tau, cuts, heads and how ImageNet is trained are not stated: those of TinyImageNet and CIFAR-100 are our reading."
    config = replace(config, model="torchvision:resnet101")
    return Recipe(name, config, PAPER, f"top-1 accuracy {accuracy} %", notes=notes, readings=readings)


def swin(data: str, row: str) -> Recipe:
    """Swin-T in four modules, its stages, each but the last with the merging of patches after it; trained from scratch."""
    method = {"e2e": "end_to_end()", "pathak": "pathak()"}.get(row) or local_method(row, 10.0)
    config = replace(
        setting(data),
        model="torchvision:swin_t",
        method=method,
        optimizer="adamw",
        lr=0.007,
        lr_schedule="cosine",
        weight_decay=0.05,
        clip_norm=5.0,
        batch_size=1024,
        warmup_epochs=20,
        label_smoothing=0.1 if row in ("plain", "trgl") else 0.0,
    )
    config = replace(config, modules=1) if row == "e2e" else replace(config, cuts=(3, 6, 13))
    name = f"swin_t_{data}_{_named(row)}" + ("" if row == "e2e" else "_k4")
    own = (
        "Decoders and weights of feature reconstruction are not known: those here are our reading."
        if row == "pathak"
        else ""
    )
    paper = "Pathak et al. 2022, arXiv 2212.14215, as quoted by Karkar et al., TRGL, NeurIPS 2023" if own else PAPER
    stl, e2e = (text if wanted else "" for text, wanted in ((SWIN_STL10, data == "stl10"), (SWIN_E2E, row == "e2e")))
    notes = noted(SWIN_NOTES, SCORES_E2E if row == "e2e" else SCORES)
    readings = noted(own, SWIN_READING, stl, e2e)
    return Recipe(name, config, paper, f"test accuracy {SWIN[data][row]} %", notes=notes, readings=readings)


def in_turn(form: str, row: str) -> Recipe:
    """ResNet-101 on CIFAR-100, module after module: once (50 + 10 k epochs for module k, from 0), or in five laps (10 + 2 k)."""
    sizes, _ = CIFAR100["resnet101"]
    method = growing_method(row)
    epochs = (50, 60) if form == "sequential" else (10, 12)
    phases = "; ".join(f"{method} for {count} on {module}" for module, count in enumerate(epochs))
    config = replace(setting("cifar100"), model="resnet101_cifar", phases=phases, cuts=ends(sizes), epochs=110)
    accuracy = IN_TURN[form][ROWS.index(row) - 1]
    grown = (FIRST_MULTIPLIER, IN_LAPS if form == "multilap" else "") if row == "trgl" else ()
    name = f"resnet101_cifar100_{'trgl' if row == 'trgl' else 'plain'}_{form}_k2"
    published, notes = f"test accuracy {accuracy} %", noted(CONVOLUTIONAL, *grown)
    return Recipe(name, config, PAPER, published, notes=notes, readings=IN_TURN_READING)


def _named(row: str) -> str:
    return {"e2e": "trgl_baseline_e2e", "plain": "trgl_baseline_plain"}.get(row, row)


def _notes(row: str, own: str = "") -> str:
    return noted(CONVOLUTIONAL_E2E if row == "e2e" else CONVOLUTIONAL, own)


def _e2e_reading(row: str, place: str) -> str:
    return E2E_READING if row == "e2e" and place not in E2E_SCRIPTS else ""
