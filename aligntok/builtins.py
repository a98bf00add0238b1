"""The built-in plugin: every shipped name and its class, imported when it is first built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Register everything that AlignTok ships, exactly as an outside plugin does."""
    registries.encoders.add("timm", "aligntok.encoders.timm.TimmEncoder")
    registries.encoders.add("dinov2", "aligntok.encoders.timm.DINOv2Encoder")
    registries.encoders.add("mae", "aligntok.encoders.timm.MAEEncoder")
    registries.encoders.add("siglip2", "aligntok.encoders.timm.SigLIP2Encoder")
    registries.encoders.add("open_clip", "aligntok.encoders.open_clip.OpenCLIPEncoder")
    registries.encoders.add("ldm_cnn", "aligntok.encoders.ldm_cnn.LDMEncoder")
    registries.encoders.add("diffusers_kl", "aligntok.encoders.diffusers_kl.DiffusersKLEncoder")

    registries.adapters.add("mlp", "aligntok.adapters.MLPAdapter")
    registries.adapters.add("linear", "aligntok.adapters.LinearAdapter")
    registries.adapters.add("identity", "aligntok.adapters.IdentityAdapter")

    registries.decoders.add("ldm_cnn", "aligntok.decoders.ldm_cnn.LDMDecoder")
    registries.decoders.add("vit_cnn", "aligntok.decoders.vit_cnn.ViTCNNDecoder")
    registries.decoders.add("diffusers_kl", "aligntok.decoders.diffusers_kl.DiffusersKLDecoder")

    registries.discriminators.add("patchgan", "aligntok.discriminators.PatchGAN")

    registries.generators.add("lightning_dit", "aligntok.generators.lightning_dit.LightningDiT")
    registries.generators.add("flux_dit", "aligntok.generators.flux_dit.FluxDiT")

    registries.extractors.add("inception_v3", "aligntok.extractors.inception.InceptionV3")
    registries.extractors.add("timm", "aligntok.extractors.libraries.TimmExtractor")
    registries.extractors.add("open_clip", "aligntok.extractors.libraries.OpenCLIPExtractor")

    registries.text_encoders.add("t5", "aligntok.text_encoders.t5.T5TextEncoder")
    registries.text_encoders.add("clip_text", "aligntok.text_encoders.clip_text.CLIPTextEncoder")
    registries.text_encoders.add("hf_text", "aligntok.text_encoders.hf_text.HFTextEncoder")

    registries.losses.add("l1", "aligntok.losses.reconstruction.L1Loss")
    registries.losses.add("lpips", "aligntok.losses.lpips.LPIPSLoss")
    registries.losses.add("gan", "aligntok.losses.adversarial.GANLoss")
    registries.losses.add("semantic_preservation", "aligntok.losses.semantic.SemanticPreservationLoss")
    registries.losses.add("vf", "aligntok.losses.semantic.VisionFoundationLoss")
    registries.losses.add("kl", "aligntok.losses.reconstruction.KLLoss")

    registries.datasets.add("images", "aligntok.data.images.ImageDataset")
    registries.datasets.add("stream", "aligntok.data.stream.dataset.StreamDataset")
    registries.datasets.add("latents", "aligntok.data.latents.LatentDataset")
    registries.metrics.add("reconstruction", "aligntok.evaluation.metrics.online.ReconstructionMetric")
    registries.metrics.add("generation", "aligntok.evaluation.metrics.online.GenerationMetric")
