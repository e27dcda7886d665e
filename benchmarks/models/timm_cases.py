"""timm: one small model of each of its families, and a few more.

The numbers are those of the model's blocks, counted from the names of its parameters. Images are as
small as the model lets them be. Models of base size are built narrower.
"""

from __future__ import annotations

from typing import Any

from cases import Build, Case, Cases, make_images
from torch import Tensor, nn

import localprop as lp

SAMPLES, USUAL_SIZE = 2, 64

BLOCKS = {
    "beit_base_patch16_224": 12,
    "botnet26t_256": 8,
    "caformer_s18": 18,
    "cait_xxs24_224": 26,
    "coat_tiny": 14,
    "coatnet_pico_rw_224": 14,
    "convit_tiny": 12,
    "convmixer_768_32": 32,
    "convnext_zepto_rms": 10,
    "cpubone_nano": 8,
    "crossvit_tiny_240": 12,
    "cs3darknet_focus_s": 7,
    "csatv2": 20,
    "cspnext_tiny": 6,
    "davit_tiny": 12,
    "deepseek_vit_412m": 6,
    "deit_tiny_patch16_224": 12,
    "densenet121": 58,
    "dla46x_c": 14,
    "dpn48b": 16,
    "edgenext_xx_small": 12,
    "efficientformer_l1": 12,
    "efficientformerv2_s0": 14,
    "efficientvim_m1": 6,
    "efficientvit_b0": 8,
    "efficientvit_m0": 6,
    "ese_vovnet19b_slim_dw": 4,
    "fasternet_t0": 13,
    "fastvit_t8": 10,
    "focalnet_tiny_srf": 12,
    "gcvit_xxtiny": 12,
    "gemma4_vit_167m_enc": 16,
    "ghostnet_050": 16,
    "gmlp_ti16_224": 30,
    "halonet_h1": 16,
    "hardcorenas_b": 18,
    "hgnetv2_b0": 5,
    "hiera_tiny_224": 12,
    "hrnet_w18_small": 8,
    "iformer_t": 20,
    "inception_next_atto": 12,
    "inception_resnet_v2": 40,
    "inception_v3": 11,
    "inception_v4": 14,
    "lambda_resnet26t": 8,
    "lcnet_035": 10,
    "lcnetv2_small": 13,
    "legacy_seresnet18": 8,
    "legacy_xception": 12,
    "levit_128s": 9,
    "lowformer_b0": 9,
    "mambaout_femto": 24,
    "maxvit_pico_rw_256": 14,
    "mixnet_s": 16,
    "mobilenetv2_035": 17,
    "mobilenetv4_hybrid_medium": 30,
    "mobilenetv5_base": 39,
    "mobileone_s1": 21,
    "mobilevit_xxs": 11,
    "mvitv2_tiny": 10,
    "naflexvit_base_patch16_parfac_gap": 12,
    "nasnetalarge": 20,
    "nest_tiny": 12,
    "nextvit_small": 20,
    "nf_regnet_b0": 16,
    "pit_ti_224": 12,
    "pnasnet5large": 14,
    "poolformerv2_s12": 12,
    "pvt_v2_b0": 8,
    "qwen3_vit_88m": 12,
    "rdnet_tiny": 21,
    "regnetx_002": 13,
    "repghostnet_050": 16,
    "repvgg_a0": 21,
    "repvit_m1": 14,
    "res2next50": 16,
    "resmlp_12_224": 12,
    "resnest14d": 4,
    "resnet10t": 4,
    "resnetv2_18": 8,
    "resnext50_32x4d": 16,
    "rexnet_100": 16,
    "sam2_hiera_tiny": 12,
    "samvit_base_patch16_224": 12,
    "selecsls42": 10,
    "sequencer2d_s": 18,
    "shvit_s1": 9,
    "skresnet18": 8,
    "starnet_s050": 6,
    "swiftformer_xs": 12,
    "swin_tiny_patch4_window7_224": 12,
    "swinv2_cr_tiny_224": 12,
    "swinv2_tiny_window8_256": 12,
    "tiny_vit_5m_224": 12,
    "tnt_s_legacy_patch16_224": 12,
    "tresnet_m": 21,
    "twins_svt_small": 18,
    "vgg11": 8,
    "visformer_tiny": 11,
    "vit_relpos_small_patch16_224": 12,
    "vit_srelpos_small_patch16_224": 12,
    "vit_tiny_patch16_224": 12,
    "vit_tiny_patch16_dinov3_qkvb": 12,
    "vit_tiny_r_s16_p8_224": 12,
    "vitamin_small_224": 20,
    "volo_d1_224": 20,
    "xception41p": 12,
    "xcit_nano_12_p8_224": 14,
}
# Models that must be told the size of their images.
TOLD = {
    "beit_base_patch16_224",
    "botnet26t_256",
    "cait_xxs24_224",
    "coat_tiny",
    "coatnet_pico_rw_224",
    "convit_tiny",
    "deit_tiny_patch16_224",
    "efficientformerv2_s0",
    "gcvit_xxtiny",
    "gmlp_ti16_224",
    "hiera_tiny_224",
    "levit_128s",
    "maxvit_pico_rw_256",
    "nest_tiny",
    "pit_ti_224",
    "resmlp_12_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "tnt_s_legacy_patch16_224",
    "visformer_tiny",
    "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "volo_d1_224",
}
# Models that need larger images.
SIZES = {
    "deepseek_vit_412m": 224,
    "efficientformer_l1": 224,
    "gemma4_vit_167m_enc": 96,
    "halonet_h1": 256,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
}
NARROW = {"embed_dim": 48, "num_heads": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": NARROW,
    "deepseek_vit_412m": NARROW,
    "gemma4_vit_167m_enc": NARROW,
    "naflexvit_base_patch16_parfac_gap": NARROW,
    "qwen3_vit_88m": NARROW,
    "samvit_base_patch16_224": NARROW,
    "vgg11": {"mlp_ratio": 1 / 64},
}


def take_mean(model: nn.Module, batch: Any) -> Tensor:
    features: Tensor = model(batch[0])
    return features.mean(1)


def build(name: str) -> Build:
    """A constructor of a case."""

    def build_case() -> Case:
        import timm

        size = SIZES.get(name, USUAL_SIZE)
        options = dict(OPTIONS.get(name, {}))
        if name in TOLD:
            options["img_size"] = size
        model = timm.create_model(name, num_classes=5, **options)
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        batch = make_images(size, samples=SAMPLES)
        # An encoder returns an embedding of each patch; here it is trained by their mean.
        task = lp.task(forward=take_mean, loss=lp.Classification()) if "_enc" in name else None
        return Case(model, batch, task, blocks=BLOCKS[name], family=family, is_small=False)

    return build_case


CASES: Cases = {name: build(name) for name in BLOCKS}
