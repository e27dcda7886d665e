"""vit-pytorch, x-transformers and open_clip."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from cases import Build, Case, Cases, make_images, make_labels
from torch import Tensor, nn

import localprop as lp

SAMPLES, CLASSES, WORDS = 2, 5, 40
OUTSIDE = "residuals are added outside of blocks: no module returns the sum"
SMALL = {"num_classes": CLASSES, "dim": 32, "depth": 4, "heads": 4, "mlp_dim": 64, "dim_head": 8}
PATCHES = {"image_size": 32, "patch_size": 8}


def build_vit(
    module: str,
    name: str,
    options: dict[str, Any],
    blocks: int,
    shape: tuple[int, ...],
    **more: Any,
) -> Build:
    """A constructor of a case of vit-pytorch."""

    def build() -> Case:
        make = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        batch = (torch.rand(SAMPLES, *shape), make_labels(SAMPLES))
        return Case(make(**options), batch, blocks=blocks, **more)

    return build


PICTURE = (3, 32, 32)
CVT: dict[str, Any] = {
    f"s{stage}_{name}": value
    for stage in (1, 2, 3)
    for name, value in (("emb_dim", 16 * stage), ("heads", 1), ("depth", (1, 2, 10)[stage - 1]))
}
TWINS: dict[str, Any] = {
    f"s{stage}_{name}": value
    for stage in (1, 2, 3, 4)
    for name, value in (
        ("emb_dim", 16 * stage),
        ("local_patch_size", 2),
        ("global_k", 2),
        ("depth", (1, 1, 5, 4)[stage - 1]),
    )
}

VITS: Cases = {
    "vit": build_vit("vit", "ViT", SMALL | PATCHES, 4, PICTURE, no_cuts=OUTSIDE),
    "simple_vit": build_vit(
        "simple_vit", "SimpleViT", SMALL | PATCHES, 4, PICTURE, no_cuts=OUTSIDE
    ),
    "deepvit": build_vit("deepvit", "DeepViT", SMALL | PATCHES, 4, PICTURE, no_cuts=OUTSIDE),
    "cait": build_vit(
        "cait", "CaiT", SMALL | PATCHES | {"cls_depth": 2}, 6, PICTURE, no_cuts=OUTSIDE
    ),
    "xcit": build_vit(
        "xcit", "XCiT", SMALL | PATCHES | {"cls_depth": 2}, 6, PICTURE, no_cuts=OUTSIDE
    ),
    "t2t": build_vit("t2t", "T2TViT", SMALL | {"image_size": 64}, 6, (3, 64, 64), no_cuts=OUTSIDE),
    "cct": build_vit(
        "cct",
        "CCT",
        {"img_size": 32, "embedding_dim": 32, "num_layers": 4, "num_heads": 4, "mlp_ratio": 2}
        | {"num_classes": CLASSES, "positional_embedding": "learnable"},
        5,
        PICTURE,
    ),
    "cvt": build_vit(
        "cvt", "CvT", CVT | {"num_classes": CLASSES}, 13, (3, 64, 64), no_cuts=OUTSIDE
    ),
    "max_vit": build_vit(
        "max_vit",
        "MaxViT",
        {"num_classes": CLASSES, "dim": 16, "depth": (1, 1, 2), "dim_head": 8, "window_size": 2}
        | {"dim_conv_stem": 16, "dropout": 0.1},
        5,
        PICTURE,
    ),
    "mobile_vit": build_vit(
        "mobile_vit",
        "MobileViT",
        {
            "image_size": (64, 64),
            "dims": [16, 24, 32],
            "channels": [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 64],
            "num_classes": CLASSES,
        },
        10,
        (3, 64, 64),
    ),
    "twins": build_vit(
        "twins_svt", "TwinsSVT", TWINS | {"num_classes": CLASSES}, 18, (3, 64, 64), no_cuts=OUTSIDE
    ),
    "vit_1d": build_vit(
        "vit_1d", "ViT", SMALL | {"seq_len": 64, "patch_size": 8}, 4, (3, 64), no_cuts=OUTSIDE
    ),
    "vit_3d": build_vit(
        "vit_3d",
        "ViT",
        SMALL | {"image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2},
        4,
        (3, 4, 32, 32),
        no_cuts=OUTSIDE,
    ),
    "vivit": build_vit(
        "vivit",
        "ViViT",
        {name: value for name, value in SMALL.items() if name != "depth"}
        | {"image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
        | {"spatial_depth": 2, "temporal_depth": 2},
        5,
        (3, 4, 32, 32),
        no_cuts=OUTSIDE,
    ),
}


# --- x-transformers -------------------------------------------------------------------------------


def build_x_transformer(positions: bool = True, no_cuts: str = OUTSIDE, **options: Any) -> Build:
    """A language model, whose targets are the next words."""

    def build() -> Case:
        import x_transformers

        layers = x_transformers.Decoder(dim=32, depth=4, heads=4, attn_dim_head=8, **options)
        model = x_transformers.TransformerWrapper(
            num_tokens=WORDS, max_seq_len=16, attn_layers=layers, use_abs_pos_emb=positions
        )
        ids = torch.randint(WORDS, (SAMPLES, 13))
        batch = (ids[:, :-1], ids[:, 1:])
        return Case(model, batch, blocks=4, causal=True, no_cuts=no_cuts)

    return build


class Pooled(nn.Module):
    """The encoder of a text and a classifier."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.last = encoder, nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.last(self.encoder(ids, return_embeddings=True).mean(1))
        return scores


def build_text_classifier() -> Case:
    import x_transformers

    layers = x_transformers.Encoder(dim=32, depth=4, heads=4, attn_dim_head=8)
    encoder = x_transformers.TransformerWrapper(
        num_tokens=WORDS, max_seq_len=16, attn_layers=layers
    )
    batch = (torch.randint(WORDS, (SAMPLES, 12)), make_labels(SAMPLES))
    return Case(Pooled(encoder), batch, blocks=4, no_cuts=OUTSIDE)


def build_image_classifier() -> Case:
    import x_transformers

    layers = x_transformers.Encoder(dim=32, depth=4, heads=4, attn_dim_head=8)
    model = x_transformers.ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=CLASSES, attn_layers=layers
    )
    return Case(model, make_images(32, samples=SAMPLES), blocks=4, no_cuts=OUTSIDE)


X_TRANSFORMERS: Cases = {
    "decoder": build_x_transformer(),
    "alibi": build_x_transformer(positions=False, alibi_pos_bias=True),
    "rotary": build_x_transformer(positions=False, rotary_pos_emb=True),
    "t5bias": build_x_transformer(positions=False, rel_pos_bias=True),
    "resi": build_x_transformer(
        residual_attn=True, no_cuts="attention scores go on in a dataclass, around all blocks"
    ),
    "sandwich": build_x_transformer(sandwich_norm=True),
    "encoder_cls": build_text_classifier,
    "vit": build_image_classifier,
}


# --- open_clip ------------------------------------------------------------------------------------


def make_clip() -> Any:
    import open_clip

    vision = {"image_size": 32, "patch_size": 8, "layers": 4, "width": 32, "head_width": 8}
    text = {"context_length": 12, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 4}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


class Text(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.clip.visual = None
        self.clip.logit_scale = None

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = self.clip.encode_text(ids)
        return features


def build_clip(part: str) -> Build:
    def build() -> Case:
        clip, ids = make_clip(), torch.randint(1, WORDS, (SAMPLES, 12))
        images, labels = make_images(32, samples=SAMPLES)
        if part == "text":
            return Case(Text(clip), (ids, labels), blocks=4)
        if part == "vision":
            return Case(clip.visual, (images, labels), blocks=5)
        task = lp.task(
            forward=lambda model, batch: model(*batch[0])[0],
            loss=lambda values, _: values.square().mean(),
            targets=lambda batch: batch[1],
        )
        return Case(clip, ((images, ids), labels), task, blocks=8, no_cuts="two towers")

    return build


CASES: Cases = {
    **{f"vitpt:{name}": build for name, build in VITS.items()},
    **{f"xt:{name}": build for name, build in X_TRANSFORMERS.items()},
    **{f"open_clip:{part}": build_clip(part) for part in ("both", "text", "vision")},
}
