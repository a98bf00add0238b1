"""What drawing samples is told: the generator, what fixes a sample, and the folder; or the sweep to make instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError
from aligntok.settings import BatchSize, ChangesTo, ImageSize, Pictures, Positive, Precision, Seed, Share, settings


@settings(
    renamed={
        "num": "num_samples",
        "average": "ema",
        "beside": "real_images",
        "sampler_options": "options",
        "source": "run",
        "changes": "sampling",
    }
)
class SampleRequest:
    """Draw samples from a trained generator. The same command started again goes on where it stopped; under torchrun
    every process takes its share. Options of sampling default to what the run's config says.

        aligntok sample work_dirs/my_run --num-samples 16
        aligntok sample work_dirs/my_run --num-samples 50000 --steps 250 --cfg-scale 6.7
        aligntok sample work_dirs/my_flux --prompt 'a red fox in the snow'
        aligntok sample work_dirs/my_run --guidance-sweep 1 2 4 8 --sweep-steps 10 30
    """

    run: str | Path
    """A work folder with a trained generator, or a saved one."""
    num_samples: Positive | None = None
    """Samples to draw; None: 64, or one of each prompt."""
    out: str | Path | None = None
    """The folder to write; None: RUN/samples/<the settings>."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    ema: Share | None = None
    """Width or decay of the average, a width that was not kept from snapshots; None: the config's ema.inference."""
    labels: Literal["random", "balanced"] | None = None
    """Random by the sample's seed, or each class in turn; None: random where there are classes."""
    classes: tuple[str | int, ...] = ()
    """These, over and over, instead of labels: names, or numbers where classes have none; index:3 is a number."""
    prompt: tuple[str, ...] = ()
    """Prompts, of a generator that takes them: each once, then each again, until there are num_samples."""
    prompts: str | Path | None = None
    """A file of prompts instead: one a line, or .json, .jsonl, .csv or .tsv with prompt, caption or text."""
    negative: str | None = None
    """What guidance leads away from, a prompt or class; None: the empty prompt, or the null class."""
    text_encoders: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where the text encoders of a saved generator are: tokens=FOLDER, pooled=FOLDER."""
    seed: Seed = 0
    """Of sample 0; sample i has seed + i. Of prompts another for each prompt and image of it."""
    size: ImageSize | None = None
    """Pixels: a side, or height and width; None: those of the training images."""
    precision: Precision | None = None
    """Of the generator's arithmetic; None: bf16 on GPUs that have it, else fp32. Pictures are decoded in float32."""
    compile: bool = False
    """Compile the generator's blocks, which pays for many samples; their rounding becomes another."""
    sampling: Annotated[dict[str, Any], ChangesTo(Sampling)] = dataclasses.field(default_factory=dict)
    """What is to differ from the generator's own; another sampler begins with its own options."""
    autoguidance: str | Path | None = None
    """Guide away from this weaker generator on the same latents, not from the null class."""
    batch_size: BatchSize = 32
    """Samples at once, of one process."""
    npz: bool = True
    """Write samples.npz, too."""
    grid: Pictures = 64
    """Samples in grid.png; 0: none."""
    real_images: str | Path | None = None
    """Images to show beside samples of the class of the same name, in beside_real.png."""
    split: str | None = None
    """Of the real images: a subfolder, or a word in the names of its files."""
    real_label: str | None = None
    """Of the real images where their labels are, as `label` of data."""
    guidance_sweep: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """Compare these guidance scales instead, and 1."""
    sweep_steps: tuple[Positive, ...] = ()
    """Each with these numbers of steps; none: the run's."""
    reference: str | Path | None = None
    """Of make-reference: measure the distance of each scale and steps from it."""
    extractor: str = "inception_v3"
    """The reference's features."""
    extractor_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of it, such as size=96."""

    def __post_init__(self) -> None:
        if self.weights == "raw" and self.ema is not None:
            raise ConfigError(f"ema {self.ema:g} is one of the averages; leave it, or --weights raw, out")
        if self.labels is not None and self.classes:
            raise ConfigError(f"both labels={self.labels} and a list of classes were given; give one of the two")
        if self.prompt and self.prompts is not None:
            raise ConfigError("both --prompt and --prompts were given; give one of the two")
        if self.negative is not None and self.autoguidance is not None:
            raise ConfigError(
                "--negative and --autoguidance were both given; guidance leads away from one of them: leave one out"
            )
        self._check_idle()
        if self.guidance_sweep is None:
            if self.reference is not None:
                raise ConfigError(
                    "--reference belongs to --guidance-sweep; samples are measured by evaluate.py generation"
                )
            if self.sweep_steps:
                raise ConfigError("--sweep-steps belongs to --guidance-sweep; for samples give --steps")
        elif "cfg_scale" in self.sampling or (self.sweep_steps and "steps" in self.sampling):
            raise ConfigError(
                "--guidance-sweep and --sweep-steps say which scales and steps; leave out --cfg-scale, --steps"
            )

    def _check_idle(self) -> None:
        """Raise ConfigError for an option that would do nothing beside the others."""
        own = {field.name: field.default for field in dataclasses.fields(self)}
        for names, where, is_idle in (
            (("split", "real_label"), "without --real-images", self.real_images is None),
            (("real_images", "grid", "npz"), "with --guidance-sweep", self.guidance_sweep is not None),
            (("extractor", "extractor_options"), "without --reference", self.reference is None),
        ):
            for name in names:
                if is_idle and getattr(self, name) not in (own[name], {}):
                    option = f"--{'no-' if name == 'npz' else ''}{name.replace('_', '-')}"
                    raise ConfigError(f"{option} does nothing {where}; leave it out")
