"""What holds where a config or a caller says nothing: every published default, written out a second time.

Another default gives other samples, weights or numbers, and no error. It is meant to be changed in two places.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import runpy
from pathlib import Path

import pytest
import torch

#: Of a function or a component: all its defaults, none left out.
COMPUTED = {
    "data.latent_shards:shard_path": dict(layout="aligntok"),
    "data.latent_shards:write_shard": dict(captions=None, layout="aligntok"),
    "diffusion.samplers:dopri5": dict(rtol=1e-3, atol=1e-6),
    # SiT's: diffusion sigma, norm 1, the last step by the mean
    "diffusion.samplers:euler_maruyama": dict(randomness=None, diffusion="sigma", diffusion_norm=1.0, last_step="mean"),
    "diffusion.samplers:ddim": dict(eta=0.0, noise="posterior", randomness=None),
    "diffusion.samplers:sample": dict(sampler="euler"),
    "diffusion.times:time_grid": dict(shift=1.0, start=0.0, end=1.0),
    "diffusion.times:sample_times": dict(sampling="logit_normal", mean=0.0, scale=1.0, shift=1.0),
    "diffusion.flow:flow_matching_loss": dict(direction_weight=1.0),
    "diffusion.guidance:classifier_free": dict(
        null=None, scale=1.0, interval=None, channels=None, preserve_energy=False
    ),
    "diffusion.guidance:autoguidance": dict(scale=1.0, interval=None, channels=None, preserve_energy=False),
    "diffusion.guidance:guide": dict(channels=None, preserve_energy=False),
    "evaluation.metrics.fid:kernel_distance": dict(subsets=100, subset_size=1000, seed=0),  # KID's protocol
    "evaluation.metrics.fid:inception_score": dict(splits=10, seed=0),
    "evaluation.metrics.fid:precision_recall": dict(k=3),
    "evaluation.metrics.fid:density_coverage": dict(k=5),
    "evaluation.metrics.latent_space:cknna": dict(topk=10),
    "losses.semantic:SemanticPreservationLoss": dict(distance="l2", on="latents"),
    "losses.semantic:VisionFoundationLoss": dict(
        distance_margin=0.25, cosine_margin=0.5, distance_weight=1.0, cosine_weight=1.0
    ),
    "losses.adversarial:GANLoss": dict(kind="hinge"),
    "losses.lpips:LPIPSLoss": dict(net="vgg", pretrained=True, slice_images=8),
    "training.alignment.gradient_ratio:gradient_ratio": dict(max=1e4, eps=1e-8),
    "generators.lightning_dit:LightningDiT": dict(
        size="XL",
        input_size=16,
        patch_size=1,
        in_channels=32,
        hidden_size=None,
        depth=None,
        num_heads=None,
        mlp_ratio=4.0,
        class_dropout_prob=0.1,
        num_classes=1000,
        use_swiglu=True,
        use_rope=True,
        use_rmsnorm=True,
        use_qknorm=False,
        wo_shift=False,
    ),
    "generators.flux_dit:FluxDiT": dict(
        in_channels=32,
        out_channels=None,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=2048,
        mlp_ratio=4.0,
        num_heads=16,
        depth=7,
        depth_single_blocks=14,
        axes_dim=None,
        theta=10_000,
        qkv_bias=True,
        guidance_embed=False,
        patch_size=1,
        text_padding="mask",
    ),
    "discriminators:PatchGAN": dict(in_channels=3, base_channels=64, num_layers=3, norm="batch", group_images=None),
    "adapters:MLPAdapter": dict(hidden_dim=None),
}
#: Of settings and what has more to say: the defaults that numbers depend on.
SETTINGS = {
    "tokenizer:Tokenizer": dict(latent_dim=32, downsample_factor=16, variational=False, trusted=True),
    "decoders.ldm_cnn:LDMDecoder": dict(
        ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(16,), resolution=256, dropout=0.0
    ),
    "encoders.ldm_cnn:LDMEncoder": dict(
        ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(16,), resolution=256, double_z=True
    ),
    "diffusion.settings:TransportSettings": dict(
        times="logit_normal", mean=0.0, scale=1.0, shift=1.0, direction_weight=1.0
    ),
    "diffusion.settings:Sampling": dict(
        steps=30, sampler="euler", shift=1.0, cfg_scale=1.0, cfg_interval=None, cfg_channels=None, preserve_energy=False
    ),
    "engine.ema:EMASettings": dict(sigma_rel=[0.05, 0.10], decays=[], inference=0.05, snapshot_every=None),
    "training.generator_settings:GeneratorEMASettings": dict(sigma_rel=[], decays=[0.9999], inference=0.9999),
    "training.alignment.gradient_ratio:AdaptiveWeight": dict(max=1e4, eps=1e-8, images=None, reference=None),
    "training.alignment.objective:LossTerm": dict(weight=1.0, start_step=0, adaptive_weight=None),
    "weights.lora:LoRASettings": dict(rank=16, alpha=32, dropout=0.1),
    "training.settings:StageSettings": dict(
        global_batch_size=64,
        gradient_accumulation_steps=1,
        precision="fp32",
        clip_grad_norm=None,
        spike_factor=30.0,
        skip_norm=None,
        skip_after=1000,
        max_skipped_steps=20,
        discriminator={"type": "patchgan"},
        teacher=None,
        trainable=["encoder", "adapter", "decoder"],
        optimizer={"type": "Adam", "lr": 1e-4, "betas": (0.5, 0.9)},
        discriminator_optimizer={"type": "Adam", "lr": 1e-4, "betas": (0.5, 0.9)},
    ),
    "training.generator_settings:GeneratorSettings": dict(
        global_batch_size=256,
        gradient_accumulation_steps=1,
        precision="fp32",
        clip_grad_norm=None,
        spike_factor=30.0,
        skip_norm=None,
        skip_after=1000,
        max_skipped_steps=20,
        optimizer={"type": "AdamW", "lr": 2e-4, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ),
    "training.generator_settings:LatentDataSettings": dict(statistics_images=10_000, posterior="mean"),
    "training.settings:ValidationSettings": dict(perceptual={"type": "lpips"}, num_images=None),
    "training.settings:RunSettings": dict(seed=0, deterministic=False),
    "caching.settings:CacheRequest": dict(
        image_size=256, hflip=True, dtype="fp32", precision="fp32", shard_size=None, posterior="mean", seed=0
    ),
    "sampling.settings:SampleRequest": dict(num_samples=None, seed=0, labels=None, precision=None, sampling={}),
    "evaluation.settings:LatentAnalysis": dict(num_images=10_000, topk=10, tsne_points=5000, seeds=(0, 1, 2)),
    "evaluation.settings:ReconstructionSettings": dict(
        image_size=256, extractor="inception_v3", perceptual=("lpips",), precision="fp32"
    ),
    "evaluation.settings:GenerationSettings": dict(extractor="inception_v3", num_samples=None),
    "evaluation.settings:ReferenceSettings": dict(image_size=256, extractor="inception_v3", keep_features=10_000),
    "evaluation.settings:ProbeSettings": dict(
        image_size=256, epochs=3, lr=1e-3, batch_size=256, seed=0, pool=False, standardize=False
    ),
    "ops.attention:attention": dict(backend=None, who="others"),
    "ops.packed:packed_attention": dict(backend=None, who="others"),
    "device:repeatable": dict(asked=True),
    "device:going_back_repeatably": dict(key="CUDA"),
    "ops.attention:_as_pytorch": dict(attn_mask=None, dropout_p=0.0, is_causal=False),
    "distributed.parallel:traffic": dict(micro_batches=1),
    "training.alignment.gradient_ratio:ratio_at": dict(scale=1.0),
    "training.alignment.model:AlignmentModel": dict(seed=0),
    "training.alignment.model:AlignmentModel.train": dict(mode=True),
    "training.alignment.graph:run_forward": dict(step=0, scale=1.0, keep=()),
    "training.alignment.graph:ForwardGraph": dict(step=0, scale=1.0),
    "training.generation.model:GenerationModel": dict(seed=0),
    "training.generation.model:GenerationModel.train": dict(mode=True),
    "engine.ema:WeightAverages": dict(decays=()),
    "distributed.parallel:Sharding": dict(shard=None, parameters="fp32"),
    "distributed.parallel:parallelise": dict(parallel="replicate"),
    "engine.checkpoints:Checkpoint": dict(files=()),
    "engine.saving:CheckpointWriter": dict(keep_every=None, asynchronous=False),
    "engine.checkpoints:read_parts": dict(weights="raw", sigma_rel=None),
    "data.sampler:epoch_order": dict(bucket=0),
    "data.sampler:BucketSchedule": dict(seed=0, shuffle=True),
    "data.sampler:GlobalBatchSampler": dict(
        seed=0, rank=0, world_size=1, accumulation=1, start_step=0, shuffle=True, num_steps=None, buckets=None
    ),
    "data.sampler:SharedBatchSampler": dict(
        seed=0, rank=0, world_size=1, accumulation=1, start_step=0, shuffle=True, num_steps=None
    ),
    "data.sampler:SharedBatchSampler.batch": dict(micro_step=0),
    "data.filters:Filter._check": dict(depth=1),
    "data.stream.order:StreamOrder": dict(window=256),
    "data.stream.order:StreamSampler": dict(seed=0, window=256),
    "data.buckets:crop_to_tensor": dict(hflip=False),
    "data.sampler:per_process_batch": dict(accumulation=1),
    "data.transforms:parse_image_size": dict(who="image_size"),
    "data.transforms:read_image": dict(draft_side=None, max_aspect_ratio=50.0),
    "data.transforms:read_upright_size": dict(max_aspect_ratio=50.0),
    "data.images:assign_buckets": dict(progress=True, max_aspect_ratio=50.0),
    "data.images:ImageDataset": dict(
        image_size=256,
        train=True,
        hflip=True,
        max_unreadable=None,
        seed=0,
        max_aspect_ratio=50.0,
        held_out=False,
        max_uncaptioned=0,
    ),
    "data.buckets:EqualArea": dict(multiple_of=16, max_aspect_ratio=2.0),
    "data.images:ImageDataset.assign_buckets": dict(progress=True),
    "data.latents:LatentDataset": dict(train=True, hflip=None, normalise=True, seed=0),
    "data.latent_shards:LatentStatistics.tensors": dict(device="cpu"),
    "diffusion.samplers:options_of": dict(given=(), who="sampling", without=""),
    "diffusion.samplers:generators_from_seeds": dict(device="cpu"),
    "generators.lightning_dit:LightningDiT.set_grad_checkpointing": dict(enable=True),
    "generators.flux_dit:FluxDiT.set_grad_checkpointing": dict(enable=True),
    "latent_diffusion:LatentDiffusion.save_pretrained": dict(include_text_encoders=False, push_to_hub=False),
    "latent_diffusion:LatentDiffusion": dict(class_names=(), sampling=None, trusted=True),
    "tokenizer:Tokenizer.latents_from": dict(sample=False, noise=None),
    "tokenizer:Tokenizer.encode": dict(sample=False, noise=None),
    "sampling.words:LabelRule": dict(listed=()),
    "caching.encoder:LatentEncoder.__call__": dict(indices=()),
    "caching.encoder:latent_statistics": dict(posterior="mean", seed=0, timeout=600.0),
    "rng:rng": dict(device="cpu"),
    "device:computing": dict(where=None, whole=False),
    "device:multiplying": dict(whole=False),
}
#: Numbers outside of functions that decide what comes out, or what is allowed.
CONSTANTS = {
    "engine.ema:LEAST_DECAY": 0.5,
    "engine.optim:WINDOW": 100,
    "engine.checkpoints:FORMAT": 3,
    "engine.saving:PATIENCE_SECONDS": 10.0,
    "data.transforms:MAX_ASPECT_RATIO": 50.0,
    "data.transforms:MOST_RESIZED": 50,
    "data.images:UNREADABLE": 255,
    "data.latents:_FLIPS_AT_ONCE": 4096,
    "data.latents:_MOST_MAPPED": 512,  # of the 1024 files that a process may open
    "data.latent_shards:FORMAT": 1,
    "diffusion.flow:SHORTEST": 0.01,
    "evaluation.metrics.fid:BLOCK": 8_388_608,  # float64s in 64 MB
    "evaluation.metrics.fid:SAME": 1e-12,
    "evaluation.metrics.fid:TIE": 1e-9,
    "generators.lightning_dit:TABLE_TOLERANCE": 0.01,
    "generators.dit_blocks:EPS": 1e-6,
    "generators.dit_blocks:TIME_CHANNELS": 256,
    "rng:SEEDS": 4_294_967_296,
    "sampling.pipeline:SAME_STATISTICS": 0.001,
    "device:PRECISIONS": {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16},
}
#: Whose defaults a base class or a peer has chosen.
OF_OTHERS = {
    "training.alignment.model:AlignmentModel.forward": "mmengine's",
    "training.generation.model:GenerationModel.forward": "mmengine's",
    "distributed.dcp:_Planner": "torch's",
    "distributed.dcp:_Planner.set_up_planner": "torch's",
    "ops.dropout:SampleDropout": "torch's",
    "tokenizer:Tokenizer._from_pretrained": "huggingface_hub's",
}


def found(name):
    """A class, function, method or number of AlignTok by "module:name"."""
    module, _, inside = name.partition(":")
    return functools.reduce(getattr, inside.split("."), importlib.import_module(f"aligntok.{module}"))


def defaults(of):
    """The defaults of settings, of what makes a component, or of a function."""
    if dataclasses.is_dataclass(of):
        made = {f.name: f.default_factory() for f in dataclasses.fields(of) if callable(f.default_factory)}
        return made | {f.name: f.default for f in dataclasses.fields(of) if f.default is not dataclasses.MISSING}
    try:
        parameters = inspect.signature(of).parameters.values()
    except ValueError:  # str and its kind say none
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_computes_has_its_published_defaults_and_no_others(name):
    assert defaults(found(name)) == COMPUTED[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_have_their_published_defaults(name):
    own = defaults(found(name))
    assert {key: own.get(key, "none") for key in SETTINGS[name]} == SETTINGS[name]


@pytest.mark.parametrize("name", CONSTANTS)
def test_numbers_outside_of_functions_are_those_that_were_chosen(name):
    assert found(name) == CONSTANTS[name]


def named(module):
    """The functions, classes and methods that a module makes, by name."""
    for name, each in vars(importlib.import_module(f"aligntok.{module}")).items():
        if getattr(each, "__module__", None) == f"aligntok.{module}" and callable(each):
            yield f"{module}:{name}", each
            for method, own in vars(each).items() if inspect.isclass(each) else ():
                own = getattr(own, "__func__", own)  # of a class's own method
                if inspect.isfunction(own) and (method == "__call__" or not method.startswith("__")):
                    yield f"{module}:{name}.{method}", own


def test_no_default_is_left_out_where_tests_are_seen_failing():
    """Of the files whose lines are broken by `make mutants`: a default of None says that something else decides."""
    modules = runpy.run_path(str(Path(__file__).parent / "mutation" / "files.py"))["MODULES"]
    written = {**SETTINGS, **COMPUTED}
    left_out = {}
    for module in (path.replace("/", ".").removesuffix(".__init__") for path in modules):
        for name, each in named(module):
            chosen = {key for key, value in defaults(each).items() if value is not None}
            if dataclasses.is_dataclass(each):  # what it gathers begins empty
                chosen = {key for key in chosen if not isinstance(defaults(each)[key], dict | list)}
            if missing := chosen - set(written.get(name, ())):
                left_out[name] = missing
    assert left_out.keys() == OF_OTHERS.keys(), left_out
