"""Every word of AlignTok's that the golden run types or looks for and that may change: one place for each.

A commit that renames a verb, an option, a config key or a file changes it here, and golden.json stays as it is.
"""

from __future__ import annotations

# Verbs: the tool and, where it has several, the verb.
TRAIN = ("train.py",)
EXPORT = ("export.py",)
CACHE = ("cache_latents.py",)
SAMPLE = ("sample.py",)
RECONSTRUCTION = ("evaluate.py", "reconstruction")
GENERATION = ("evaluate.py", "generation")
PROBE = ("evaluate.py", "linear-probe")
REFERENCE = ("evaluate.py", "make-reference")
ANALYZE = ("analyze_latents.py",)
COST = ("measure_cost.py",)
COMPARE = ("compare.py",)
REPORT = ("report.py",)

# Options.
AVERAGE = "--ema"
SIGMA_REL = "--ema"
BESIDE = "--real-images"
NUM_IMAGES = "--num-images"
NUM_SAMPLES = "--num-samples"
SAMPLER_OPTIONS = "--options"
NO_MIRROR = "--no-hflip"
FIRST_CLASS = "index:0"

# Config keys.
TRAINS = "trainable"
START = "init_from"
BALANCE = "adaptive_weight"
AGAINST = "reference"
MAX_RATIO = "max"
ACCUMULATION = "gradient_accumulation_steps"
NUM = "num_samples"

# Where a plugin's author finds the base class of extractors, and what one returns.
EXTRACTORS = "aligntok.extractors"

# Files and folders that commands leave.
TOKENIZER = "tokenizer"  # of a work folder: what its stages made
GENERATOR = "latent_diffusion"  # of a work folder: what its generator's training made
LATENTS = "latents"  # of a work folder: the cache that its config asked for
SAMPLES_ARRAY = "samples.npz"
SWEEP_TABLE = "sweep.csv"
SWEEP_GRID = "sweep_grid.png"
COMPARISON = "comparison.json"
PAGE = "report.html"

#: What names of pictures that are plots begin with; they are matplotlib's.
PLOTS = ("tsne",)
#: What of a result's JSON file is numbers that were found; the rest says how.
FOUND = ("metrics", "tables")
#: Numbers whose name has one of these are of the machine and the moment, and left out.
LEFT_OUT = r"second|memory|hour|latency|throughput|/s\b|(^|/)(time|data_time|eta)$"
#: Sections of a report that say how numbers were found, not which.
NOT_FOUND = ("Settings",)
#: What a scalar's name begins with if it is a loss.
LOSS = "loss/"
