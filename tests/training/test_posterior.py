"""The posterior of a variational tokenizer: sampled in training; for a generator its mean or a draw, as one chooses."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from aligntok.caching import cache_latents
from aligntok.caching.encoder import LatentEncoder, latent_statistics, posterior_noise
from aligntok.caching.settings import CacheRequest, CacheSettings
from aligntok.data.latents import LatentDataset
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.registry import DATASETS
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment.graph import run_forward
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.run import run


@pytest.fixture(scope="module")
def variational(tmp_path_factory):
    """A tiny variational tokenizer with a posterior of some width, and its folder."""
    torch.manual_seed(0)
    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
    tokenizer = Tokenizer(cnn, dict(type="identity"), cnn, latent_dim=4, downsample_factor=8, variational=True).eval()
    folder = tmp_path_factory.mktemp("variational")
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


def moments(tokenizer, images):
    with torch.no_grad():
        mean, logvar = tokenizer.moments(images).chunk(2, dim=1)
    return mean, (0.5 * logvar).exp()


def test_training_decodes_a_sample(variational):
    tokenizer, images = variational[0], torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = moments(tokenizer, images)
    noise = torch.randn_like(mean)
    chain = run_forward(tokenizer, images, ("encoder", "adapter", "decoder"), noise=noise)
    torch.testing.assert_close(chain.leaves["latents"].detach(), mean + std * noise)


def test_a_draw_follows_from_seed_image_and_copy_alone():
    drawn = posterior_noise(3, [5, 6, 7], 0, (4, 8, 8))
    assert torch.equal(drawn[1:2], posterior_noise(3, [6], 0, (4, 8, 8)))
    others = posterior_noise(3, [5], 1, (4, 8, 8)), posterior_noise(4, [5], 0, (4, 8, 8)), drawn[1:2]
    assert all(not torch.equal(drawn[:1], other) for other in others)
    many = posterior_noise(0, range(200), 0, (4, 8, 8))
    assert many.dtype == torch.float32
    assert float(many.mean()) == pytest.approx(0, abs=0.02)
    assert float(many.std()) == pytest.approx(1, abs=0.02)


def test_mean_and_sample_are_the_posteriors(variational):
    tokenizer, images = variational[0], torch.rand(3, 3, 32, 32) * 2 - 1
    places = [11, 2, 30]
    mean, std = moments(tokenizer, images)
    mirrored_mean, mirrored_std = moments(tokenizer, images.flip(-1))
    found = LatentEncoder(tokenizer, CacheSettings(image_size=32))(images, places)
    torch.testing.assert_close(found, torch.stack([mean, mirrored_mean], dim=1))
    found = LatentEncoder(tokenizer, CacheSettings(image_size=32, posterior="sample", seed=7))(images, places)
    expected = [
        mean + std * posterior_noise(7, places, 0, (4, 4, 4)),
        mirrored_mean + mirrored_std * posterior_noise(7, places, 1, (4, 4, 4)),
    ]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


def latents_of(folder):
    data = LatentDataset(folder, train=False, normalise=False)
    return data, data.batch(range(len(data)))["latents"]


def test_a_cache_of_samples_does_not_depend_on_batches_and_says_what_it_is(variational, classes, tmp_path):
    folder, made = variational[1], {}
    for name, batch_size, more in [
        ("mean", 4, {}),
        ("one", 1, dict(posterior="sample")),
        ("five", 5, dict(posterior="sample")),
        ("other", 5, dict(posterior="sample", seed=1)),
    ]:
        encoding = dict(image_size=32, shard_size=6, **more)
        out = cache_latents(
            CacheRequest(
                tokenizer=folder,
                data=classes,
                out=tmp_path / name,
                **encoding,
                split="train",
                batch_size=batch_size,
                workers=0,
            )
        )
        made[name] = latents_of(out)
    torch.testing.assert_close(made["one"][1], made["five"][1], rtol=0, atol=1e-5)
    assert not torch.allclose(made["five"][1], made["other"][1], atol=1e-2)
    assert not torch.allclose(made["five"][1], made["mean"][1], atol=1e-2)
    recorded = {name: data.manifest.encoding for name, (data, _) in made.items()}
    assert recorded["mean"]["posterior"] == "mean"
    assert "seed" not in recorded["mean"]
    assert (recorded["other"]["posterior"], recorded["other"]["seed"]) == ("sample", 1)
    wider = [np.mean(made[name][0].statistics.std) for name in ("mean", "five")]
    assert wider[1] > wider[0] + 0.1, "the statistics are those of what is stored"
    with pytest.raises(ConfigError, match="was begun otherwise .*posterior mean, now sample"):
        cache_latents(
            CacheRequest(
                tokenizer=folder,
                data=classes,
                out=tmp_path / "mean",
                image_size=32,
                shard_size=6,
                posterior="sample",
                split="train",
            )
        )


def test_a_cache_that_was_begun_before_there_was_a_choice_goes_on_with_means(variational, classes, tmp_path):
    encoding = dict(image_size=32, shard_size=6)
    out = cache_latents(
        CacheRequest(tokenizer=variational[1], data=classes, out=tmp_path / "old", **encoding, split="train", workers=0)
    )
    begun = json.loads((out / "encoding.json").read_text())
    assert begun.pop("posterior") == "mean"
    (out / "encoding.json").write_text(json.dumps(begun))
    cache_latents(CacheRequest(tokenizer=variational[1], data=classes, out=out, **encoding, split="train", workers=0))


def test_a_sample_of_what_has_no_posterior_and_other_words_are_errors(variational, tiny_tokenizer):
    plain = Tokenizer.from_pretrained(tiny_tokenizer)
    with pytest.raises(ConfigError, match="needs a variational tokenizer"):
        LatentEncoder(plain, CacheSettings(image_size=32, posterior="sample"))
    with pytest.raises(ConfigError, match="CacheSettings: posterior='mode'; it must be 'mean' or 'sample'"):
        CacheSettings(posterior="mode")


# Encoded on the fly


def on_the_fly(write_generation, classes, folder, posterior, **more):
    train = dict(type="images", split="train", image_size=32)
    data = dict(train=train, posterior=posterior, statistics_images=15)
    return load_config(write_generation(data=data, data_root=str(classes), tokenizer=str(folder), **more))


def test_a_generator_trains_on_samples_that_are_encoded_on_the_fly(variational, classes, write_generation, tmp_path):
    losses = {}
    for posterior in ("mean", "sample"):
        work_dir = tmp_path / posterior
        config = on_the_fly(write_generation, classes, variational[1], posterior, steps=2, work_dir=str(work_dir))
        LatentDiffusion.from_pretrained(run(config))
        described = json.loads((work_dir / "generation/stage.json").read_text())
        assert described["data"]["posterior"] == posterior
        losses[posterior] = described["statistics"]["std"]
    assert np.mean(losses["sample"]) > np.mean(losses["mean"]) + 0.1


def test_samples_on_the_fly_do_not_depend_on_how_a_step_is_split(variational, classes):
    from aligntok.training.generation.model import GenerationModel
    from aligntok.training.generator_settings import GeneratorSettings
    from aligntok.training.stages import MicroBatch

    tokenizer = copy.deepcopy(variational[0])
    data = dict(type="images", root=str(classes), split="train", image_size=32)
    statistics = latent_statistics(tokenizer, data, None, "fp32", 0, "sample")
    generator = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4)
    diffusion = LatentDiffusion(generator, tokenizer, statistics, (4, 4, 4))
    own = dict(train={"type": "images"}, posterior="sample")
    model = GenerationModel(diffusion, GeneratorSettings(steps=1, generator=generator, data=own), seed=2)
    dataset = DATASETS.build({**data, "train": False})
    images = torch.stack([dataset[i]["images"] for i in range(4)])
    whole = model.posterior_noise({"images": images}, MicroBatch(3, 0, 1))
    halves = [model.posterior_noise({"images": images[:2]}, MicroBatch(3, micro, 2)) for micro in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(whole, model.posterior_noise({"images": images}, MicroBatch(4, 0, 1)))
    mean, std = moments(tokenizer, images)
    found = model.latents({"images": images}, whole)
    torch.testing.assert_close(found, statistics.normalise(mean + std * whole))


def test_a_config_chooses_for_a_cache_or_for_images(write_generation, classes, variational):
    with pytest.raises(ConfigError, match=r"data\.posterior='sample' is for images that are encoded on the fly"):
        expand_generation(load_config(write_generation(data=dict(posterior="sample"))))
    cached = dict(latent_cache=dict(posterior="sample", image_size=32), data_root=str(classes))
    assert expand_generation(load_config(write_generation(**cached))).posterior == "sample"
    with pytest.raises(ConfigError, match="latent_cache.posterior='mode'; .*it must be 'mean' or 'sample'"):
        expand_generation(load_config(write_generation(latent_cache=dict(posterior="mode"))))
