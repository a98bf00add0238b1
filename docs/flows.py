"""The pictures of docs/architecture.md: what a batch passes on its way, box by box.

    python docs/generate.py

writes each flow of `FLOWS` as an SVG into docs/images. A box names something of the package, which a test imports.
"""

from __future__ import annotations

import textwrap
from html import escape

#: File name -> (title, rows); a row is (its heading, boxes); a box is (dotted name below aligntok, what it does).
FLOWS = {
    "flow_stage": (
        "From a config to a training step of a stage",
        [
            (
                "plan",
                [
                    ("training.config.load_config", "the files of a config become one dict; every key is checked"),
                    ("training.alignment.expand_stages", "the dict becomes one complete set of settings a stage"),
                    ("training.builder.build_runner", "data, model, optimisers and hooks of one stage"),
                ],
            ),
            (
                "read",
                [
                    ("data.sources.open_source", "which images there are, and where their bytes lie"),
                    ("data.sampler.GlobalBatchSampler", "which of them a step sees, from seed and step alone"),
                    ("data.images.ImageDataset", "reads an image, crops it, turns it into a tensor"),
                ],
            ),
            (
                "hand over",
                [
                    ("data.loader.make_loader", "workers read ahead; their errors come out in words"),
                    ("engine.runner.StepLoop", "gives the model one step at a time, in micro-batches"),
                    ("training.alignment.model.AlignmentModel", "train_step, the same for every stage"),
                ],
            ),
            (
                "forward",
                [
                    ("training.alignment.graph.run_forward", "encoder, adapter, decoder, cut apart at the seams"),
                    ("training.alignment.model.Teacher", "the frozen encoder's answer, where a loss asks for it"),
                    ("training.alignment.objective.Objective", "which losses count now, and where each of them pulls"),
                ],
            ),
            (
                "backward",
                [
                    ("training.alignment.gradient_ratio.ratio_at", "how hard one loss pulls beside another"),
                    ("distributed.parallel.parallelise", "DDP or FSDP2 average each part, while the rest is computed"),
                    ("engine.optim.PartOptimizers", "moves every side, or leaves out a step gone wrong"),
                ],
            ),
            (
                "after it",
                [
                    ("engine.ema.WeightAverages", "averages of the trained weights follow"),
                    ("engine.hooks.ScalarsHook", "losses, ratios and norms are logged"),
                    ("engine.saving.write_checkpoint", "the state after the step, whole or not at all"),
                ],
            ),
        ],
    ),
    "flow_generator": (
        "A generator's training step",
        [
            (
                "plan",
                [
                    ("training.generation.expand_generation", "the config becomes the generator's settings"),
                    ("training.generation.GeneratorStage", "opens the tokenizer, and makes the cache if need be"),
                    ("latent_diffusion.LatentDiffusion", "generator, tokenizer, statistics of latents: one model"),
                ],
            ),
            (
                "read",
                [
                    ("data.latent_shards.Shard", "latents of a cache, mapped from disk"),
                    ("data.sampler.GlobalBatchSampler", "which of them a step sees, from seed and step alone"),
                    ("data.latents.LatentDataset", "takes a batch out, normalised, with its labels"),
                ],
            ),
            (
                "hand over",
                [
                    ("data.loader.make_loader", "workers read ahead; their errors come out in words"),
                    ("engine.runner.StepLoop", "gives the model one step at a time, in micro-batches"),
                    ("training.generation.model.GenerationModel", "train_step; draws times, noise, dropped labels"),
                ],
            ),
            (
                "forward",
                [
                    ("diffusion.times.sample_times", "a time between noise (0) and data (1) a sample"),
                    ("diffusion.flow.interpolate", "the point of the straight path at that time"),
                    ("generators.Generator", "the velocity there, given the class or none"),
                ],
            ),
            (
                "backward",
                [
                    ("diffusion.flow.velocity_mse", "how far from the path's own velocity"),
                    ("engine.optim.PartOptimizers", "moves the weights, or leaves out a step gone wrong"),
                    ("engine.ema.WeightAverages", "averages of the weights follow"),
                ],
            ),
        ],
    ),
    "flow_sample": (
        "A sample",
        [
            (
                "ask",
                [
                    ("sampling.sample_images", "the command: how many samples, and into which folder"),
                    ("sampling.pipeline.SampleRequest", "of which generator, which classes, seed, precision"),
                    ("loading.load_latent_diffusion", "the generator and its tokenizer, from a folder"),
                ],
            ),
            (
                "share out",
                [
                    ("sampling.folder.SampleFolder", "which samples the folder still lacks"),
                    ("distributed.job.shares", "which batches are this process's"),
                    ("sampling.pipeline.SamplePipeline", "gives each sample a label by its own seed"),
                ],
            ),
            (
                "draw",
                [
                    ("diffusion.sampling.draw_samples", "noise by each sample's seed, and a grid of times"),
                    ("diffusion.guidance.guide", "a velocity led by class, or by a weaker model"),
                    ("diffusion.samplers.sample", "follows it from noise to data"),
                ],
            ),
            (
                "finish",
                [
                    ("decoders.Decoder", "images of the latents, denormalised"),
                    ("io.pictures.to_uint8", "8 bits a colour, rounded and clamped in one place"),
                    ("sampling.folder.PictureWriter", "PNGs, written while the next batch is drawn"),
                ],
            ),
        ],
    ),
    "flow_evaluation": (
        "An evaluation",
        [
            (
                "ask",
                [
                    (
                        "evaluation.reconstruction.evaluate_reconstruction",
                        "the command: which tokenizer on which images",
                    ),
                    ("loading.load_tokenizer", "the tokenizer, from a folder, a hub or a checkpoint"),
                    ("evaluation.images.EvaluationImages", "each image once, as the tokenizer is to see it"),
                ],
            ),
            (
                "in rounds",
                [
                    ("distributed.job.shares", "which batches are this process's"),
                    ("tokenizer.Tokenizer", "images to latents and back"),
                    ("evaluation.metrics.online.ReconstructionMetric", "takes the pairs, in training and here alike"),
                ],
            ),
            (
                "measure",
                [
                    ("evaluation.metrics.image_quality.psnr", "of a pair: PSNR, SSIM, perceptual distances"),
                    ("extractors.Extractor", "what a frozen network says of each image"),
                    ("evaluation.metrics.features.FeatureCollector", "features and moments, over all processes"),
                ],
            ),
            (
                "tell",
                [
                    ("evaluation.metrics.fid.frechet_distance", "of two sets: FID and its kin"),
                    ("evaluation.results.Result", "numbers, and everything that fixes them"),
                    ("evaluation.results.publish", "a JSON file, a line in TensorBoard, a page"),
                ],
            ),
        ],
    ),
}

WIDTH, MARGIN, BOX, HEIGHT, GAP, BETWEEN = 800, 88, 222, 84, 22, 30
#: A colour for each row, with dark text on it: legible on white and on black alike.
COLOURS = ("#d6e4f5", "#d5ecdc", "#f3e6c8", "#e5dcf3", "#f5dcd8", "#d9e9ec")
LINE = "#7d8590"  # arrows and headings: between white and black
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2328}"
    ".name{font:600 12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    ".room{font:10.5px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#57606a}"
    ".words{font-size:11.5px}"
    f".row{{font-size:13px;font-weight:600;fill:{LINE}}}"
)


def pictures() -> dict[str, str]:
    """Return the SVG of each flow, by file name."""
    return {f"{name}.svg": _picture(title, rows) for name, (title, rows) in FLOWS.items()}


def names() -> list[str]:
    """Return the dotted name of every box."""
    return [f"aligntok.{name}" for _, rows in FLOWS.values() for _, boxes in rows for name, _ in boxes]


def lines(words: str) -> list[str]:
    """Return the lines of a box: as long as fits in the widest of the fonts."""
    return textwrap.wrap(words, 33)


def _picture(title: str, rows: list[tuple[str, list[tuple[str, str]]]]) -> str:
    height = len(rows) * (HEIGHT + BETWEEN) - BETWEEN + 8
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.5L8 4L0 7.5z" fill="{LINE}"/></marker></defs>',
    ]
    for number, (heading, boxes) in enumerate(rows):
        top = 4 + number * (HEIGHT + BETWEEN)
        drawn.append(f'<text class="row" x="4" y="{top + HEIGHT / 2 + 4:g}">{escape(heading)}</text>')
        for column, (name, words) in enumerate(boxes):
            drawn += _box(_left(column), top, name, words, COLOURS[number])
            if column:
                drawn.append(_arrow(f"M{_left(column) - GAP + 1} {top + HEIGHT / 2:g}H{_left(column) - 2}"))
        if number:
            drawn.append(_arrow(_turn(top, len(rows[number - 1][1]) - 1)))
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _left(column: int) -> int:
    return MARGIN + column * (BOX + GAP)


def _turn(top: int, last: int) -> str:
    """Return the path from the last box of a row to the first of the next, whose upper side is at `top`."""
    begin, end, middle = _left(last) + BOX // 2, MARGIN + BOX // 2, top - BETWEEN // 2
    return f"M{begin} {top - BETWEEN + 1}V{middle}H{end}V{top - 2}"


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _box(left: int, top: int, name: str, words: str, colour: str) -> list[str]:
    room, _, shown = name.rpartition(".")
    return [
        f'<rect x="{left}" y="{top}" width="{BOX}" height="{HEIGHT}" rx="7" fill="{colour}"/>',
        f'<text class="name" x="{left + 11}" y="{top + 21}">{shown}</text>',
        f'<text class="room" x="{left + 11}" y="{top + 37}">{room}</text>',
        *(
            f'<text class="words" x="{left + 11}" y="{top + 56 + 16 * i}">{escape(line)}</text>'
            for i, line in enumerate(lines(words))
        ),
    ]
