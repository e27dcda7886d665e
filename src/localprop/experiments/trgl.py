"""TRGL, the plain local learning in its tables, and feature reconstruction (Pathak et al.).

The figures of feature reconstruction are from TRGL's tables, too.

Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the
Minimizing Movement Scheme (TRGL), NeurIPS 2023, text and official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_cuts_of_sizes
from localprop.experiments.recipe import Recipe, join_notes
from localprop.training.config import Config

PAPER = "Karkar et al., TRGL, NeurIPS 2023"
PATHAK_PAPER = (
    "Pathak et al. 2022, arXiv 2212.14215, as quoted by Karkar et al., TRGL, NeurIPS 2023"
)
TINYIMAGENET_DATA = "folder:tiny-imagenet-200"
# Mean and standard deviation of each channel.
NORMALIZATIONS = {
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    TINYIMAGENET_DATA: ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}
# fmt: off
# STL-10, ResNet-110: blocks of each module, then accuracy in % and 95 % interval of plain local
# learning and of TRGL.
STL10 = {
    "k2": ((27, 27), "79.85 +- 0.93", "80.04 +- 0.85"),
    "k4": ((14, 14, 13, 13), "77.11 +- 2.31", "79.72 +- 0.81"),
    "k8": ((7, 7, 7, 7, 8, 6, 6, 6), "75.71 +- 0.55", "77.82 +- 0.73"),
    "k16": ((4,) * 6 + (3,) * 10, "73.57 +- 0.95", "77.22 +- 1.20"),
    "balanced_k2": ((14, 40), "79.05", "79.47"),
    "balanced_k4": ((6, 8, 12, 28), "77.14", "78.94"),
}
# CIFAR-100 in 2 modules and TinyImageNet in 4: blocks of each module, then accuracy in % of
# end-to-end training, plain local learning and TRGL.
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
# Swin-T in 4 modules: accuracy in %.
SWIN = {
    "stl10": {"e2e": "72.19", "plain": "67.00", "trgl": "67.92", "pathak": "66.89"},
    "cifar10": {"e2e": "91.37", "plain": "83.94", "trgl": "86.48", "pathak": "86.28"},
    "cifar100": {"e2e": "75.03", "plain": "69.34", "trgl": "74.11", "pathak": "73.00"},
}
# ResNet-101 on CIFAR-100, one module after the other: accuracy in % of plain local learning and
# of TRGL.
IN_TURN = {"sequential": ("73.31", "73.61"), "multilap": ("74.34", "74.78")}
# ImageNet, ResNet-101 in 2 modules: accuracy in %.
IMAGENET = {"e2e": "78.71", "plain": "78.11", "trgl": "79.41"}
# fmt: on
ROWS = ("e2e", "plain", "trgl")
# Pools of the heads in the official code, by the size of the features.
POOLS = {
    "resnet50": (16, 8, 8, 4),
    "resnet101": (8, 8, 8, 4),
    "resnet152": (8, 8, 8, 4),
    "vgg19": (8, 8, 8, 4),
}
# Where the official code has a script for end-to-end training.
E2E_SCRIPTS = ("resnet101_cifar100", "resnet152_tinyimagenet")

# --- notes and readings -------------------------------------------------------------------------

SCORE_NOTE = (
    "The official code's score is a maximum over epochs and modules on one half of the test set, "
    "and its last module has a head like the others."
)
SCORE_E2E_NOTE = "The official code's score is a maximum over epochs on one half of the test set."
ORTHOGONAL_NOTE = (
    "The official code draws weights orthogonally with gain 0.1. Here they are initialised like "
    "those of the other ResNets."
)
FIRST_MULTIPLIER_NOTE = (
    "In the official code the multiplier of the first module is 1 until it first grows, and then "
    "grows from 0 instead of 1."
)
CYCLES_NOTE = "The official code resets the multiplier to 1 in each cycle; here it keeps growing."
SWIN_NOTE = (
    "The official code has no weight decay on biases, norms and position biases, and changes the "
    "learning rate in every batch. It trains in fp16, and here training is in fp32."
)
IMAGENET_NOTE = (
    "The official code scales images to 256 pixels, crops 224 at random and flips. Here a crop of "
    "random area is scaled."
)
VGG_READING = (
    "The official code does not have the paper's VGG-19, its cuts, its heads, or the penalties of "
    "its layers: all are our reading."
)
E2E_READING = (
    "The official code has no end-to-end training of this network on these data: the setting of "
    "its other scripts is our reading."
)
IN_TURN_READING = (
    "The learning rate, the batch size and the penalty of modules in turn are not known to us: "
    "those of parallel training on CIFAR-100 are our reading."
)
BALANCED_TAU_READING = "tau of the balanced rows is not stated: 0.5, then 1, is our reading."
BALANCED_FIGURE_READING = (
    "The number of modules that each figure belongs to is inferred from InfoPro's figures beside "
    "them."
)
IMAGENET_READING = (
    "tau, cuts, heads and the setting for ImageNet are not stated: those of TinyImageNet and "
    "CIFAR-100 are our reading."
)
SWIN_READING = (
    "The learning rate is 0.007 in the official README and 0.5 in the official script. The "
    "README's is our reading."
)
SWIN_CIFAR_READING = (
    "The official command is for STL-10. Its setting for these data, with the script's default "
    "windows of 8, is our reading."
)
RESNET50_READING = (
    "The official commands for TinyImageNet are for ResNet-152. Cuts and pools of ResNet-50 stand "
    "in a script of the repository's history (commit 15b7192), without a command. That the "
    "figures come from it is our reading."
)
SWIN_E2E_READING = "Label smoothing of end-to-end training is not stated: none is our reading."
PATHAK_READING = (
    "Decoders and weights of feature reconstruction are not known: those here are our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield make_stl10_end_to_end()
    yield from (make_stl10(row, local) for row in STL10 for local in ROWS[1:])
    yield from (make_cifar100(network, row) for network in CIFAR100 for row in ROWS)
    yield from (make_tinyimagenet(network, row) for network in TINYIMAGENET for row in ROWS)
    yield from (make_imagenet(row) for row in ROWS)
    for data, accuracies in SWIN.items():
        yield from (make_swin(data, row) for row in accuracies)
    yield from (make_in_turn(form, row) for form in IN_TURN for row in ROWS[1:])


# --- settings and methods -----------------------------------------------------------------------


def make_local_setting(data: str) -> Config:
    """SGD with momentum and a constant learning rate."""
    mean, std = NORMALIZATIONS.get(data, (None, None))
    return Config(
        data=data,
        augment="crop,flip" if data == TINYIMAGENET_DATA else None,
        padding="zeros" if data in NORMALIZATIONS else None,
        mean=mean,
        std=std,
        batch_size=64 if data == "stl10" else 256,
        lr=0.002 if data == "stl10" else 0.003,
        nesterov=False,
        weight_decay=2e-4,
        label_smoothing=0.1,
        lr_schedule="constant",
        epochs=300,
        validation=0.0,
    )


def make_e2e_setting(data: str) -> Config:
    """End-to-end training as in the official scripts for CIFAR-100 and TinyImageNet."""
    return replace(
        make_local_setting(data),
        method="end_to_end()",
        modules=1,
        lr=0.1,
        weight_decay=1e-4,
        lr_schedule="multistep",
        milestones=(120, 160, 200),
        lr_factor=0.2,
    )


def format_method(
    row: str, tau: float, late_factor: float = 1.0, aux: str = "OneConvHead()", plain: bool = False
) -> str:
    """Plain local learning, or TRGL; `late_factor` multiplies tau in the second half of modules."""
    if row == "plain":
        return f"Rule(aux={aux}, loss=CrossEntropy(label_smoothing=0.1))"
    return f"trgl(tau={tau}, late_factor={late_factor}, plain={plain}, aux={aux})"


def format_growing_method(row: str) -> str:
    """Plain local learning, or TRGL with the growing multiplier of the CIFAR-100 table."""
    aux = f"OneConvHead(pools={POOLS['resnet101']})"
    if row == "trgl":
        return f"trgl(tau=0.5, late_factor=1.0, growth=1.0, every=50, aux={aux})"
    return format_method(row, 0.5, aux=aux)


# --- recipes ------------------------------------------------------------------------------------


def make_stl10_end_to_end() -> Recipe:
    """The reference of the STL-10 rows."""
    config = replace(make_e2e_setting("stl10"), model="resnet110:shortcut=pad")
    name, published = "resnet110_stl10_trgl_baseline_e2e", "test accuracy 77.73 %"
    return Recipe(name, config, PAPER, published, _notes_of_resnet("e2e"), E2E_READING)


def make_stl10(row: str, local: str) -> Recipe:
    """ResNet-110 with shortcuts without parameters."""
    sizes, plain_accuracy, trgl_accuracy = STL10[row]
    tau = 50.0 if row == "k2" else 0.5
    config = replace(
        make_local_setting("stl10"),
        model="resnet110:shortcut=pad",
        method=format_method(local, tau, late_factor=2.0),
        cuts=find_cuts_of_sizes(sizes),
    )
    published = f"test accuracy {trgl_accuracy if local == 'trgl' else plain_accuracy} %"
    readings = ""
    if row.startswith("balanced"):
        tau_reading = BALANCED_TAU_READING if local == "trgl" else ""
        readings = join_notes(tau_reading, BALANCED_FIGURE_READING)
    else:
        published += ", 95 % interval"
    name = f"resnet110_stl10_{_name_of_row(local)}_{row}"
    return Recipe(name, config, PAPER, published, _notes_of_resnet(local), readings)


def make_cifar100(network: str, row: str) -> Recipe:
    """ResNet-101 and ResNet-152 in two modules."""
    sizes, accuracies = CIFAR100[network]
    if row == "e2e":
        config = make_e2e_setting("cifar100")
    else:
        cuts = find_cuts_of_sizes(sizes)
        setting = make_local_setting("cifar100")
        config = replace(setting, method=format_growing_method(row), cuts=cuts)
    notes = join_notes(_notes_of_resnet(row), FIRST_MULTIPLIER_NOTE if row == "trgl" else "")
    return Recipe(
        f"{network}_cifar100_{_name_of_row(row)}" + ("" if row == "e2e" else "_k2"),
        replace(config, model=f"{network}_cifar"),
        PAPER,
        f"test accuracy {accuracies[ROWS.index(row)]} %",
        notes=notes,
        readings=_e2e_reading_of(row, f"{network}_cifar100"),
    )


def make_tinyimagenet(network: str, row: str) -> Recipe:
    """TinyImageNet, 64x64 and 200 classes, in four modules. The stem of ResNets halves images."""
    is_vgg = network == "vgg19"
    sizes, accuracies = TINYIMAGENET[network]
    if row == "e2e":
        config = make_e2e_setting(TINYIMAGENET_DATA)
    else:
        aux = f"OneConvHead(pools={POOLS[network]})"
        method = format_method(row, 500000.0, late_factor=2.0, aux=aux, plain=is_vgg)
        config = replace(make_local_setting(TINYIMAGENET_DATA), method=method)
        if is_vgg:
            config = replace(config, modules=4)
        else:
            config = replace(config, cuts=find_cuts_of_sizes(sizes))
    model = network if is_vgg else f"{network}_cifar:kernel=7"
    unsure = {"vgg19": VGG_READING, "resnet50": "" if row == "e2e" else RESNET50_READING}
    e2e_reading = _e2e_reading_of(row, f"{network}_tinyimagenet")
    return Recipe(
        f"{network}_tinyimagenet_{_name_of_row(row)}" + ("" if row == "e2e" else "_k4"),
        replace(config, model=model, image_size=64),
        PAPER,
        f"test accuracy {accuracies[ROWS.index(row)]} %",
        notes=_notes_of_resnet(row),
        readings=join_notes(unsure.get(network, ""), e2e_reading),
    )


def make_imagenet(row: str) -> Recipe:
    """ResNet-101 in two modules."""
    if row == "e2e":
        config = make_e2e_setting("folder:imagenet")
    else:
        aux = f"OneConvHead(pools={POOLS['resnet101']})"
        config = replace(
            make_local_setting("folder:imagenet"),
            method=format_method(row, 500000.0, late_factor=2.0, aux=aux),
            cuts=find_cuts_of_sizes(CIFAR100["resnet101"][0]),
        )
    return Recipe(
        f"resnet101_imagenet_{_name_of_row(row)}" + ("" if row == "e2e" else "_k2"),
        replace(config, model="torchvision:resnet101"),
        PAPER,
        f"top-1 accuracy {IMAGENET[row]} %",
        notes=IMAGENET_NOTE,
        readings=IMAGENET_READING,
    )


def make_swin(data: str, row: str) -> Recipe:
    """Swin-T, trained from scratch in four modules.

    The modules are its four stages. Each module but the last ends with the patch merging after
    its stage. The learning rate grows from 1 % of its highest value for 20 epochs, and then falls
    to a tenth of it.
    """
    methods = {"e2e": "end_to_end()", "pathak": "pathak()"}
    config = replace(
        make_local_setting(data),
        model=f"swin_t:window={6 if data == 'stl10' else 8}",
        method=methods.get(row) or format_method(row, 10.0),
        optimizer="adamw",
        lr=0.007,
        lr_schedule="cosine_after_warmup",
        warmup_epochs=20,
        warmup_from=0.00007,
        weight_decay=0.05,
        batch_size=1024,
        label_smoothing=0.1 if row in ("plain", "trgl") else 0.0,
    )
    config = replace(config, modules=1) if row == "e2e" else replace(config, cuts=(3, 6, 13))
    return Recipe(
        f"swin_t_{data}_{_name_of_row(row)}" + ("" if row == "e2e" else "_k4"),
        config,
        PATHAK_PAPER if row == "pathak" else PAPER,
        f"test accuracy {SWIN[data][row]} %",
        notes=join_notes(SWIN_NOTE, SCORE_E2E_NOTE if row == "e2e" else SCORE_NOTE),
        readings=join_notes(
            PATHAK_READING if row == "pathak" else "",
            SWIN_READING,
            "" if data == "stl10" else SWIN_CIFAR_READING,
            SWIN_E2E_READING if row == "e2e" else "",
        ),
    )


def make_in_turn(form: str, row: str) -> Recipe:
    """ResNet-101 on CIFAR-100, one module after the other.

    "sequential" trains module k (from 0) once, for 50 + 10 k epochs. "multilap" trains it in five
    cycles, for 10 + 2 k epochs in each.
    """
    method = format_growing_method(row)
    epochs = (50, 60) if form == "sequential" else (10, 12)
    phases = [f"{method} for {count} on {module}" for module, count in enumerate(epochs)]
    config = replace(
        make_local_setting("cifar100"),
        model="resnet101_cifar",
        phases="; ".join(phases),
        cuts=find_cuts_of_sizes(CIFAR100["resnet101"][0]),
        epochs=110,
    )
    notes = _notes_of_resnet(row)
    if row == "trgl":
        cycles_note = CYCLES_NOTE if form == "multilap" else ""
        notes = join_notes(notes, FIRST_MULTIPLIER_NOTE, cycles_note)
    published = f"test accuracy {IN_TURN[form][ROWS.index(row) - 1]} %"
    name = f"resnet101_cifar100_{row}_{form}_k2"
    return Recipe(name, config, PAPER, published, notes=notes, readings=IN_TURN_READING)


def _name_of_row(row: str) -> str:
    return {"e2e": "trgl_baseline_e2e", "plain": "trgl_baseline_plain"}.get(row, row)


def _notes_of_resnet(row: str) -> str:
    return join_notes(SCORE_E2E_NOTE if row == "e2e" else SCORE_NOTE, ORTHOGONAL_NOTE)


def _e2e_reading_of(row: str, script: str) -> str:
    return E2E_READING if row == "e2e" and script not in E2E_SCRIPTS else ""
