"""Which tokenizer a latent is of: a fingerprint of everything that turns an image into it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from aligntok.tokenizer import Tokenizer

#: What a tokenizer's config says that its latents do not depend on: how they are decoded, and by what it was written.
_WITHOUT_EFFECT = ("decoder", "plugins", "aligntok_version")


def tokenizer_identity(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the weights and the config of encoder and adapter, 64 hexadecimal digits.

    The same for every copy of a tokenizer, wherever it is loaded from and on whatever device. The decoder is left out:
    refining it, as stage 3 does, changes no latent. Raises ConfigError if a part was given as a module.
    """
    config = {key: value for key, value in tokenizer.config.items() if key not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for part in ("encoder", "adapter"):
        for name, tensor in sorted(getattr(tokenizer, part).state_dict().items()):
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
