"""ImageReward: how much people would prefer a picture for its prompt, by BLIP (Xu et al. 2023)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligntok.errors import WeightsError
from aligntok.evaluation.text_image.scorers import Sample, Scorer, Source, covered, linear_stack
from aligntok.text_encoders.pretrained import PromptTokenizer
from aligntok.weights.load import load_into, read_tensors
from aligntok.weights.transformers import library, load_tokenizer, tokenizer_files

FILE = "ImageReward.pt"
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of rewards
TOKENS = 35
HEAD = 64  # numbers of a head of attention, of pictures and of texts
#: Names of BLIP's code, and what transformers calls the same, in this order.
_RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class ImageReward(Scorer):
    """BLIP reads the prompt's first 35 tokens while it looks at the picture; linear layers on its first state.

    folder: with ImageReward.pt, by the names of the published file, and the tokenizer. Raises WeightsError for others.
    """

    def __init__(self, folder: Path, who: str) -> None:
        super().__init__()
        file, held = folder / FILE, tokenizer_files(folder, who)
        parts = _parts(read_tensors(file, who))
        try:
            vision, text, side = _configs(parts)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise WeightsError(
                f"{who}: {file} is no ImageReward ({error} is missing or odd); give that file"
            ) from error
        transformers = library()
        self.vision = transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision))
        config = transformers.BlipTextConfig(**text)
        self.text = transformers.models.blip.modeling_blip_text.BlipTextModel(config, add_pooling_layer=False)
        self.layers = linear_stack(config.hidden_size)
        for name, module in (("vision", self.vision), ("text", self.text), ("layers", self.layers)):
            load_into(module, parts[name], who, file, spare=True)
        tokenizer = load_tokenizer(held, config, folder, who)
        self.tokenize = PromptTokenizer(tokenizer, TOKENS, config, who)
        self.sources = (Source.of_files("ImageReward", [file], held),)
        self.columns = (self.sources[0].name,)
        self.see = partial(covered, side=side)
        self.preprocessing = f"short side to {side} (Pillow's bicubic), centre crop, CLIP's mean and deviation"
        self.finish()

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        pixels = torch.stack([*seen])
        tokens = {k: v.to(pixels.device) for k, v in self.tokenize([each.prompt for each in samples]).items()}
        states = self.vision(pixel_values=pixels).last_hidden_state
        everywhere = torch.ones(states.shape[:2], dtype=torch.long, device=pixels.device)
        read = self.text(**tokens, encoder_hidden_states=states, encoder_attention_mask=everywhere)
        return (self.layers(read.last_hidden_state[:, 0].float()) - _MEAN) / _STD


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part, by the names that they have in it."""

    def of(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}

    vision = {}
    for name, each in of("blip.visual_encoder.").items():
        for theirs, ours in _RENAMED:
            name = re.sub(theirs, ours, name)
        vision[name] = each
    return {"vision": vision, "text": of("blip.text_encoder."), "layers": of("mlp.layers.")}


def _configs(parts: Mapping[str, Mapping[str, Tensor]]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return what the shapes say of both towers, and the pictures' side. Raises KeyError for what is not there."""

    def layers(names: Mapping[str, Tensor]) -> int:
        return len({found[1] for name in names if (found := re.match(r"encoder\.layers?\.(\d+)\.", name))})

    sees, reads = parts["vision"], parts["text"]
    width, _, patch, _ = sees["embeddings.patch_embedding.weight"].shape
    words, hidden = reads["embeddings.word_embeddings.weight"].shape
    side = math.isqrt(sees["embeddings.position_embedding"].shape[1] - 1) * patch
    vision: dict[str, Any] = {
        **dict(hidden_size=width, intermediate_size=sees["encoder.layers.0.mlp.fc1.weight"].shape[0]),
        **dict(num_hidden_layers=layers(sees), num_attention_heads=max(1, width // HEAD)),
        **dict(image_size=side, patch_size=patch, hidden_act="gelu", layer_norm_eps=1e-6),
    }
    text: dict[str, Any] = {
        **dict(hidden_size=hidden, intermediate_size=reads["encoder.layer.0.intermediate.dense.weight"].shape[0]),
        **dict(num_hidden_layers=layers(reads), num_attention_heads=max(1, hidden // HEAD)),
        **dict(vocab_size=words, max_position_embeddings=reads["embeddings.position_embeddings.weight"].shape[0]),
        **dict(encoder_hidden_size=width, hidden_act="gelu", layer_norm_eps=1e-12, pad_token_id=0),
        **dict(bos_token_id=None, eos_token_id=None, sep_token_id=None),
    }
    return vision, text, side
