"""Tiny models of every kind that metrics of text to image are on, in folders, and folders of drawn pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PROMPTS = ("a red apple", "a green cat", "a dog on a photo")


@pytest.fixture(scope="session")
def clip_folder(text_model, tmp_path_factory):
    """A CLIP of 32 pixels a side with a tokenizer of letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    shutil.copytree(text_model("clip"), folder)
    text = json.loads((folder / "config.json").read_text())
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32)
    config = transformers.CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=24)
    torch.manual_seed(3)
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    return folder


def _seeded(name, tensor):
    drawn = torch.randn(tensor, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    is_scale = name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "LayerNorm.weight"))
    return drawn * (0.2 if len(tensor) > 1 else 0.1) + float(is_scale)


def image_reward_tensors():
    """Tensors of a small ImageReward, by the published file's names: 2 layers of 64 and 128 numbers, 32 pixels."""
    wide, deep, ff = 64, 128, 96
    vision = {"cls_token": (1, 1, wide), "pos_embed": (1, 5, wide), "patch_embed.proj.weight": (wide, 3, 16, 16)}
    vision |= {"patch_embed.proj.bias": (wide,), "norm.weight": (wide,), "norm.bias": (wide,)}
    embeddings = {"word_embeddings.weight": (209, deep), "position_embeddings.weight": (40, deep)}
    text = {f"embeddings.{name}": shape for name, shape in embeddings.items()}
    text |= {f"embeddings.LayerNorm.{kind}": (deep,) for kind in ("weight", "bias")}
    for i in range(2):
        linear = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide)}
        linear |= {"mlp.fc1": (4 * wide, wide), "mlp.fc2": (wide, 4 * wide)}
        vision |= {f"blocks.{i}.{name}.weight": shape for name, shape in linear.items()}
        vision |= {f"blocks.{i}.{name}.bias": shape[:1] for name, shape in linear.items()}
        vision |= {f"blocks.{i}.norm{j}.{kind}": (wide,) for j in (1, 2) for kind in ("weight", "bias")}
        own = {"attention.self.query": (deep, deep), "attention.output.dense": (deep, deep)}
        own |= {f"attention.self.{name}": (deep, deep) for name in ("key", "value")}
        own |= {f"crossattention.self.{name}": (deep, wide) for name in ("key", "value")}
        own |= {"crossattention.self.query": (deep, deep), "crossattention.output.dense": (deep, deep)}
        own |= {"intermediate.dense": (ff, deep), "output.dense": (deep, ff)}
        text |= {f"encoder.layer.{i}.{name}.weight": shape for name, shape in own.items()}
        text |= {f"encoder.layer.{i}.{name}.bias": shape[:1] for name, shape in own.items()}
        norms = [
            f"encoder.layer.{i}.{name}LayerNorm" for name in ("attention.output.", "crossattention.output.", "output.")
        ]
        text |= {f"{name}.{kind}": (deep,) for name in norms for kind in ("weight", "bias")}
    tensors = {f"blip.visual_encoder.{name}": _seeded(f"blip.visual_encoder.{name}", s) for name, s in vision.items()}
    tensors |= {
        f"blip.text_encoder.{name}": _seeded(f"blip.text_encoder.{name}", shape) for name, shape in text.items()
    }
    sizes = {0: (1024, deep), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    for place, shape in sizes.items():
        for kind, form in (("weight", shape), ("bias", shape[:1])):
            tensors[f"mlp.layers.{place}.{kind}"] = _seeded(f"mlp.layers.{place}.{kind}", form) * 0.3
    return {**tensors, "blip.vision_proj.weight": torch.ones(4, wide)}


@pytest.fixture(scope="session")
def image_reward_folder(text_model, tmp_path_factory):
    """A small ImageReward under the published file's names, with BERT's tokenizer of letters."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text_model("bert") / name, folder)
    torch.save(image_reward_tensors(), folder / "ImageReward.pt")
    return folder


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory):
    """Weights of a small open_clip model named ViT-tiny, as HPSv2's file has them; open_clip knows the model."""
    import open_clip
    from open_clip.factory import _MODEL_CONFIGS

    text = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1)
    _MODEL_CONFIGS["ViT-tiny"] = dict(
        embed_dim=24, vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16), text_cfg=text
    )
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("models") / "HPS_v2_compressed.pt"
    torch.save({"epoch": 3, "state_dict": open_clip.create_model("ViT-tiny", load_weights=False).state_dict()}, file)
    yield file
    del _MODEL_CONFIGS["ViT-tiny"]


@pytest.fixture(scope="session")
def aesthetic_file(tmp_path_factory):
    """LAION's predictor on embeddings of 24 numbers, with random weights."""
    from aligntok.evaluation.text_image.scorers import linear_stack

    torch.manual_seed(2)
    file = tmp_path_factory.mktemp("models") / "linear.pth"
    torch.save({f"layers.{name}": each for name, each in linear_stack(24).state_dict().items()}, file)
    return file


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="session")
def vqa_folder(tmp_path_factory):
    """A Qwen3-VL of two layers with a tokenizer of letters."""
    library = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    marks = [f"<|{name}|>" for name in ("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end")]
    tokens = [*(chr(code) for code in range(33, 127)), "\u0120", "<|endoftext|>", *marks]
    tokenizer = library.Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    wide = dict(hidden_size=32, intermediate_size=48)
    text = dict(vocab_size=len(tokens), num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = dict(depth=2, num_heads=4, patch_size=8, out_hidden_size=32, num_position_embeddings=16)
    ids = dict(zip(("image_token_id", "video_token_id"), map(tokens.index, marks), strict=False))
    ids |= dict(vision_start_token_id=tokens.index(marks[2]), vision_end_token_id=tokens.index(marks[3]))
    config = library.Qwen3VLConfig(
        text_config={**wide, **text, "rope_parameters": rope, "max_position_embeddings": 512},
        vision_config={**wide, **vision, "deepstack_visual_indexes": [0]},
        **ids,
    )
    torch.manual_seed(4)
    library.Qwen3VLForConditionalGeneration(config).eval().save_pretrained(folder)
    size = {"shortest_edge": 256, "longest_edge": 4096}
    images = library.Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    videos = library.Qwen3VLVideoProcessor(patch_size=8, merge_size=2)
    library.Qwen3VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory):
    """A Mask2Former of COCO's 80 classes, far too small to see anything."""
    library = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny-mask2former"
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = library.SwinConfig(
        image_size=64, embed_dim=12, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages
    )
    sizes = dict(feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32)
    sizes |= dict(encoder_layers=1, decoder_layers=2, num_attention_heads=4, num_queries=10, num_labels=80)
    torch.manual_seed(5)
    model = library.Mask2FormerForUniversalSegmentation(library.Mask2FormerConfig(backbone_config=swin, **sizes))
    model.eval().save_pretrained(folder)
    library.Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture
def samples(tmp_path):
    """A function that makes a folder of pictures, of each prompt so many, with a prompts.jsonl."""

    def make(name="samples", prompts=PROMPTS, each=2, seed=0, size=(48, 32)):
        folder = Path(tmp_path / name)
        (folder / "images").mkdir(parents=True)
        lines = []
        for number, prompt in enumerate([*prompts] * each):
            pixels = np.random.default_rng((seed, number)).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            file = f"images/{number:06d}.png"
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / file)
            lines.append(json.dumps({"file": file, "prompt": prompt}))
        (folder / "prompts.jsonl").write_text("\n".join([*lines, ""]))
        return folder

    return make
