"""The files whose tests are to be seen failing, and these tests."""

from __future__ import annotations

#: The files that matter most, and their tests: the own ones, and those that come after if these see nothing.
MODULES: dict[str, tuple[list[str], list[str]]] = {
    "training/alignment/gradient_ratio": (["training/alignment/test_gradient_ratio"], []),
    "training/alignment/objective": (
        ["training/alignment/test_gradient_ratio", "training/alignment/test_model"],
        ["training/test_stages"],
    ),
    "training/alignment/model": (
        ["training/alignment/test_model", "training/alignment/test_gradient_ratio"],
        ["training/test_lora", "training/test_two_processes", "training/test_run"],
    ),
    "training/alignment/graph": (
        ["training/alignment/test_gradient_ratio", "training/alignment/test_model"],
        ["training/test_posterior"],
    ),
    "training/generation/model": (
        ["training/generation/test_model"],
        ["training/test_posterior", "training/generation/test_run"],
    ),
    "engine/ema": (["engine/test_ema"], ["training/test_run"]),
    "engine/optim": (
        ["engine/test_optim", "engine/test_skipped_steps", "training/test_skipped_buffers"],
        ["training/alignment/test_model", "training/test_two_processes", "training/test_run"],
    ),
    "engine/checkpoints": (["engine/test_checkpoints"], ["distributed/test_sharded_checkpoints", "training/test_run"]),
    "engine/saving": (
        ["engine/test_saving", "engine/test_checkpoints"],
        ["distributed/test_sharded_checkpoints", "training/test_run"],
    ),
    "distributed/__init__": (
        ["distributed/test_distributed"],
        ["distributed/test_processes", "distributed/test_failures"],
    ),
    "distributed/parallel": (
        ["distributed/test_distributed", "distributed/test_parallel"],
        ["training/test_two_processes", "training/test_torchrun"],
    ),
    "distributed/dcp": (["engine/test_checkpoints"], ["distributed/test_sharded_checkpoints", "training/test_run"]),
    "data/sampler": (["data/test_sampler", "data/test_buckets"], ["data/test_properties"]),
    "data/transforms": (["data/test_transforms"], ["data/test_buckets", "data/test_properties", "data/test_images"]),
    "data/images": (["data/test_buckets", "data/test_images"], ["training/test_variable_aspect"]),
    "data/buckets": (["data/test_buckets", "data/stream/test_selection"], ["data/test_properties", "data/test_images"]),
    "data/filters": (["data/test_filters"], ["data/stream/test_selection"]),
    "data/stream/order": (["data/stream/test_order"], ["data/stream/test_dataset"]),
    "data/stream/selection": (["data/stream/test_selection"], ["data/stream/test_order", "data/stream/test_dataset"]),
    "data/captions": (["data/test_captions"], ["data/sources/test_captions", "caching/test_captions"]),
    "data/sources/captions": (["data/sources/test_captions"], []),
    "data/latents": (["data/test_latents"], ["data/test_properties", "caching/test_latent_cache"]),
    "data/latent_shards": (["data/test_latents"], ["caching/test_latent_cache", "data/test_properties"]),
    "diffusion/samplers": (["diffusion/test_samplers"], ["diffusion/test_sampling"]),
    "diffusion/guidance": (["diffusion/test_guidance"], ["diffusion/test_sampling"]),
    "diffusion/times": (["diffusion/test_times"], []),
    "diffusion/flow": (["diffusion/test_flow", "diffusion/test_flow_losses"], []),
    "evaluation/metrics/fid": (
        ["evaluation/metrics/test_distances", "evaluation/metrics/test_statistics"],
        ["evaluation/test_two_processes"],
    ),
    "losses/semantic": (["losses/test_semantic_losses"], []),
    "losses/reconstruction": (["losses/test_reconstruction_losses", "losses/test_kl_loss"], []),
    "losses/adversarial": (["losses/test_adversarial_loss"], []),
    "generators/lightning_dit": (["generators/test_lightning_dit"], ["generators/test_generator_contract"]),
    "generators/flux_dit": (["generators/test_flux_dit"], []),
    "generators/flux_blocks": (["generators/test_flux_dit"], []),
    "generators/dit_blocks": (["generators/test_lightning_dit"], []),
    "latent_diffusion": (["test_latent_diffusion"], ["sampling/test_sampling"]),
    "tokenizer": (["test_tokenizer"], ["training/test_posterior", "caching/test_latent_cache"]),
    "sampling/pipeline": (["sampling/test_sampling"], []),
    "caching/encoder": (
        ["caching/test_encoder", "caching/test_statistics"],
        ["training/test_posterior", "caching/test_latent_cache"],
    ),
    "ops/attention": (["ops/test_attention"], []),
    "ops/packed": (["ops/test_packed"], []),
    "ops/dropout": (["ops/test_dropout"], ["distributed/test_parallel"]),
    "rng": (["test_rng"], []),
    "device": (["test_device"], []),
}
#: After all others, of every file.
OF_ALL = "test_defaults"
