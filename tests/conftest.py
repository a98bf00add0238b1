"""What several tests share: one thread, the reference tensors, and tiny runs: photographs made on the spot, models of a
few thousand weights, and config files that say so."""

from __future__ import annotations

import ast
import contextlib
import copy
import gc
import importlib
import importlib.util
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, same_content
from aligntok.tokenizer import Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "compiled_by_tests")))
# The same examples everywhere and each time, and as long as a busy machine takes.
settings.register_profile("aligntok", derandomize=True, deadline=None)
settings.load_profile("aligntok")

#: f8 on 32-pixel images; two-block ViT, group norm everywhere but in the discriminator.
MODEL = dict(
    encoder=dict(
        type="timm",
        model_name="vit_tiny_patch16_224",
        pretrained=False,
        model_args=dict(depth=2, embed_dim=48, num_heads=3),
    ),
    adapter=dict(type="mlp"),
    decoder=dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32),
    latent_dim=4,
    downsample_factor=8,
)
DISCRIMINATOR = dict(type="patchgan", base_channels=16, num_layers=2)
LOSSES = dict(l1=dict(type="l1"), gan=dict(type="gan", weight=0.5, adaptive_weight=dict(at="decoder")))
SEMANTIC = dict(type="semantic_preservation", weight=1.0, adaptive_weight=dict(at="encoder"))
STAGES = [
    dict(
        name="latent_alignment",
        trainable=["adapter", "decoder"],
        losses=dict(gan=dict(start_step=2)),
    ),
    dict(
        name="perceptual_alignment",
        init_from=dict(stage="latent_alignment", weights="raw"),
        teacher="start",
        losses=dict(semantic=SEMANTIC),
    ),
    dict(
        name="decoder_refinement",
        trainable=["decoder"],
        init_from=dict(stage="perceptual_alignment", weights="ema"),
    ),
]


@pytest.fixture(scope="session")
def trees():
    """The syntax tree of every file of the package, by its path in there: to be read by any number of tests."""
    package = Path(__file__).parents[1] / "aligntok"
    return {path.relative_to(package).as_posix(): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread a process: many small operations, the same sums in the same order, and no fight for busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference tensors and layouts beside the repository; a test that needs it is skipped without."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip(f"the reference tensors are not at {folder}: parity with published code is not checked")
    return folder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def as_processes(monkeypatch):
    """A function that calls another with each rank, side by side in threads that take themselves for processes.

    What AlignTok asks of torch.distributed is here in plain sums over copies. Returns what each call returned.
    """
    me, held, meeting = threading.local(), {}, threading.Barrier(2, timeout=60)

    def of_all(tensor):
        held[me.rank] = tensor.detach().clone()
        meeting.wait()
        found = [held[rank].clone() for rank in range(2)]
        meeting.wait()
        return found

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM, async_op=False):
        most = op == torch.distributed.ReduceOp.MAX
        tensor.copy_(torch.maximum(*of_all(tensor)) if most else sum(of_all(tensor)))
        return SimpleNamespace(wait=lambda: None)

    def all_gather(into, tensor):
        for one, other in zip(into, of_all(tensor), strict=True):
            one.copy_(other)

    def call(function, rank):
        me.rank = rank
        try:
            return function(rank)
        except BaseException:
            meeting.abort()
            raise

    said = dict(is_initialized=lambda: hasattr(me, "rank"), get_rank=lambda: me.rank, get_world_size=lambda: 2)
    said |= dict(all_reduce=all_reduce, all_gather=all_gather, barrier=meeting.wait)
    said["broadcast"] = lambda tensor, src: tensor.copy_(of_all(tensor)[src])
    for name, function in said.items():
        monkeypatch.setattr(torch.distributed, name, function)

    def run(function):
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(call, function, rank) for rank in range(2)]
        broken = [each.exception() for each in calls if each.exception()]
        for error in sorted(broken, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [each.result() for each in calls]

    return run


@pytest.fixture
def shares(tmp_path):
    """A function that shares a module out by FSDP2, among the one process that there is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield lambda module: fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    torch.distributed.destroy_process_group()


@pytest.fixture
def tiny():
    """Keywords of a tiny tokenizer, its losses, discriminator and three stages; copies, to be changed at will."""
    return copy.deepcopy(
        dict(model=MODEL, discriminator=DISCRIMINATOR, losses=LOSSES, semantic=SEMANTIC, stages=STAGES)
    )


@pytest.fixture(scope="session")
def write_labelled():
    """A function that fills a folder with train/ and val/ of two classes, so many 32-pixel pictures each."""

    def write(root, **numbers):
        rng = np.random.default_rng(0)
        for split, number in numbers.items():
            for i in range(number):
                folder = root / split / ("cat", "dog")[i % 2]
                folder.mkdir(parents=True, exist_ok=True)
                coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
        return root

    return write


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder with train/ and val/: pictures of a sky, a ground and a few things on it, with noise."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 20), ("val", 6)):
        (root / split).mkdir()
        for i in range(count):
            _photograph(np.random.default_rng((len(split), i))).save(root / split / f"{i:02d}.png")
    return root


def _photograph(rng, size=(44, 40)):
    width, height = size
    sky, ground = rng.integers(60, 250, 3), rng.integers(0, 160, 3)
    blend = (np.linspace(0, 1, height) ** rng.uniform(0.5, 3))[:, None, None]
    pixels = np.broadcast_to(sky * (1 - blend) + ground * blend, (height, width, 3)) + rng.normal(
        0, 6, (height, width, 3)
    )
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y, side = rng.integers(0, width), rng.integers(0, height), rng.integers(6, 18)
        draw.ellipse((x, y, x + side, y + side), fill=tuple(int(c) for c in rng.integers(0, 255, 3)))
    return picture


@pytest.fixture(scope="session")
def config_source(photographs):
    """Text of the config of a tiny three-stage run (`steps` a stage); further keywords replace its keys."""

    def source(steps=4, **changes):
        config = dict(
            data_root=str(photographs),
            model=MODEL,
            discriminator=DISCRIMINATOR,
            losses=LOSSES,
            data=dict(train=dict(split="train", image_size=32), val=dict(split="val", image_size=32), workers=0),
            global_batch_size=4,
            optimizer=dict(lr=1e-3),
            ema=dict(sigma_rel=[0.05, 0.10], inference=0.05),
            checkpoint=dict(every=2),
            log=dict(every=1, pictures=4),
            validation=dict(perceptual=None, batch_size=4),
            stages=[{"steps": steps, **stage} for stage in STAGES],
        )
        lines = [f"{key} = {value!r}\n" for key, value in {**config, **changes}.items()]
        return '"""A tiny run."""\n' + "".join(lines)

    return source


@pytest.fixture
def write_config(tmp_path, config_source):
    """Write such a config to a file and return its path."""

    def write(name="tiny", **changes):
        path = tmp_path / f"{name}.py"
        path.write_text(config_source(**changes))
        return str(path)

    return write


@pytest.fixture
def add_towers(monkeypatch):
    """A function that makes open_clip know models by name, given the settings of their image towers."""
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}

    def add(towers):
        known = importlib.import_module("open_clip.factory")._MODEL_CONFIGS  # when wanted: it takes seconds
        for name, vision in towers.items():
            monkeypatch.setitem(known, name, {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text})

    return add


@pytest.fixture
def slow_steps(tmp_path):
    """An option that makes every step take a quarter of a second longer, and the environment that it needs."""
    hook = "from mmengine.hooks import Hook\nimport os, time\n\n\nclass Slow(Hook):\n"
    hook += "    def after_train_iter(self, *args, **kwargs):\n        time.sleep(float(os.environ.get('SLOW', .25)))\n"
    (tmp_path / "slow_hook.py").write_text(hook)
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return "hooks=[{'type': 'slow_hook.Slow'}]", {"PYTHONPATH": os.pathsep.join(places)}


FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")
TRAIN_TOOL = Path(__file__).parents[1] / "tools" / "train.py"


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Programs as processes of their own, soon started; see tests/warm.py."""
    server = _module_of_tests("warm").Server(tmp_path_factory.mktemp("printed"))
    yield server
    server.close()


@pytest.fixture
def start(warm):
    """Start a tool of ours as a process: (name, words of its command line, setup=code that it runs before, env=).

    Several ones that torchrun would start: several=2.
    """

    def begin(tool, *words, several=0, **more):
        program = TRAIN_TOOL.with_name(f"{tool}.py")
        return warm.several(several, program, *words, **more) if several else warm.start(program, *words, **more)

    yield begin
    warm.end_all()


@pytest.fixture(scope="session")
def tool(warm):
    """Start the training tool as a process, alone or under torchrun, and look at what it left."""

    def launch(config, work_dir, *more, torchrun=(), env=()):
        words = (TRAIN_TOOL, config, "--work-dir", work_dir, *more)
        return warm.torchrun(*torchrun, *words, env=env) if torchrun else warm.start(*words, env=env)

    return SimpleNamespace(
        launch=launch,
        program=TRAIN_TOOL,
        newest=newest,
        same=same_content,
        same_ends=same_ends,
        folders=FOLDERS,
        bytes_of=bytes_of,
    )


def newest(folder):
    """What the newest checkpoint of a stage holds, but for the time it took."""
    content = read_checkpoint(list_checkpoints(folder)[-1][1])
    del content["seconds"]
    return content


def bytes_of(checkpoint):
    """The bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def same_ends(a, b, folders=FOLDERS):
    """Whether two work folders end with the same checkpoints, measurements and tokenizer, bit for bit."""
    tokenizers = [(run / "tokenizer" / "model.safetensors").read_bytes() for run in (a, b)]
    measured = [[json.loads((run / f / "result.json").read_text())["metrics"] for f in folders] for run in (a, b)]
    checkpoints = all(same_content(newest(a / folder), newest(b / folder)) for folder in folders)
    return checkpoints and measured[0] == measured[1] and tokenizers[0] == tokenizers[1]


#: A generator of a few thousand weights, for the latents (4, 4, 4) of 32-pixel images.
GENERATOR = dict(
    type="lightning_dit",
    hidden_size=32,
    depth=2,
    num_heads=2,
    input_size=4,
    in_channels=4,
    num_classes=3,
)


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """A folder with train/ of class folders: ant, bee, zebra, five photographs each."""
    root = tmp_path_factory.mktemp("classes")
    for i in range(15):
        folder = root / "train" / ("ant", "bee", "zebra")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        _photograph(np.random.default_rng((3, i))).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """The folder of a saved tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    Tokenizer(**copy.deepcopy(MODEL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_cache(classes, tiny_tokenizer, tmp_path_factory):
    """The latents of those photographs, encoded by that tokenizer."""
    folder = tmp_path_factory.mktemp("cache") / "latents"
    encoding = dict(image_size=32, shard_size=6)
    return cache_latents(
        CacheRequest(
            tokenizer=tiny_tokenizer, data=classes, out=folder, **encoding, split="train", batch_size=5, workers=0
        )
    )


@pytest.fixture(scope="session")
def generation_source(tiny_cache):
    """Text of the config of a tiny generator's training, without stages; further keywords replace its keys."""

    def source(steps=4, **changes):
        config = dict(
            data_root=str(tiny_cache),
            generator=GENERATOR,
            steps=steps,
            global_batch_size=8,
            optimizer=dict(lr=1e-3),
            sampling=dict(steps=3, cfg_scale=2.0),
            ema=dict(sigma_rel=[0.1], decays=[0.9], inference=0.9),
            checkpoint=dict(every=2),
            log=dict(every=1, pictures=4),
        )
        lines = [f"{key} = {value!r}\n" for key, value in {**config, **changes}.items()]
        return '"""A tiny generator."""\n' + "".join(lines)

    return source


def _tiny_text_model(kind, folder):
    """Save a text model of transformers with two layers and a tokenizer of letters, both as this kind has them."""
    import transformers as library

    letters = [chr(code) for code in range(33, 127)] + ["\u0120", "\u2581"]
    words = ["a", "red", "green", "apple", "cat", "dog", "of", "on", "in", "photo"]
    tokens = {
        "t5": lambda: [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), *((each, -3.0) for each in letters)],
        "clip": lambda: [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"],
        "bert": lambda: ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{x}" for x in letters)],
        "qwen3": lambda: [*letters, "<|endoftext|>"],
        "gemma3": lambda: ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters],
    }["t5" if kind == "umt5" else kind]()
    vocabulary = tokens if kind in ("t5", "umt5") else {token: place for place, token in enumerate(tokens)}
    wide = dict(vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    wide |= dict(num_attention_heads=4, max_position_embeddings=77)
    deep = dict(vocab_size=len(tokens), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ends = dict(bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)
    grouped = {**wide, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    sliding = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    tokenizer, model, config, options = {
        "t5": ("T5Tokenizer", "T5EncoderModel", "T5Config", deep),
        "umt5": ("T5Tokenizer", "UMT5EncoderModel", "UMT5Config", deep),
        "clip": ("CLIPTokenizer", "CLIPTextModelWithProjection", "CLIPTextConfig", {**wide, **ends}),
        "bert": ("BertTokenizer", "BertModel", "BertConfig", wide),
        "qwen3": ("Qwen2Tokenizer", "Qwen3Model", "Qwen3Config", grouped),
        "gemma3": ("GemmaTokenizer", "Gemma3TextModel", "Gemma3TextConfig", {**grouped, **sliding}),
    }[kind]
    more = {"extra_ids": 0} if "5" in kind else {} if kind == "bert" else {"merges": []}
    made = getattr(library, tokenizer)(vocab=vocabulary, padding_side="left" if kind == "qwen3" else "right", **more)
    made.save_pretrained(folder)
    torch.manual_seed(len(kind))
    getattr(library, model)(getattr(library, config)(**options)).eval().save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    """A function that gives the folder of a tiny text model: of kind t5, umt5, clip, bert, qwen3 or gemma3."""
    pytest.importorskip("transformers")
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = _tiny_text_model(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture
def write_generation(tmp_path, generation_source):
    """Write such a config to a file and return its path."""

    def write(name="tiny_generator", **changes):
        path = tmp_path / f"{name}.py"
        path.write_text(generation_source(**changes))
        return str(path)

    return write


if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all tests are found, which stay: to look for garbage in them takes a third of the time


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Names that are no text are shown by their codes: pytest-xdist cannot send a report that has them as they are."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


def _module_of_tests(place):
    spec = importlib.util.spec_from_file_location(Path(place).name, Path(__file__).parent / f"{place}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server_module():
    """tests/data/server.py, which serves folders on this machine."""
    return _module_of_tests("data/server")


@pytest.fixture(scope="session")
def build_index():
    """A function that writes tar shards of small pictures, and an index of them; see tests/data/shards.py."""
    return _module_of_tests("data/shards").build_index


@pytest.fixture
def serve(server_module):
    """A function that serves a folder by HTTP until the test ends; see tests/data/server.py."""
    pytest.importorskip("aiohttp", reason='shards by HTTP need pip install "aligntok[remote]"')
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(server_module.Server(folder))
