"""What stands in the README.md of a folder that is shared on a hub, for its owner to complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligntok.io.files import writing_text

TOKENIZER_CARD = """---
{{ card_data }}
---

An image tokenizer for latent diffusion, made with AlignTok: a pretrained vision encoder, an adapter and a decoder.

```python
import aligntok

tokenizer = aligntok.load_tokenizer("this repository's id")
latents = tokenizer.encode("picture.png")  # (1, d, H / f, W / f); also a list, or a tensor (N, 3, H, W) in [-1, 1]
images = tokenizer.decode(latents)
tokenizer.processor.to_pil(images)[0].save("reconstruction.png")
```

`config.json` names the parts and the packages that give them. The licence is that of the pretrained encoder's weights
and of the training images; fill it in.
"""
GENERATOR_CARD = """---
{{ card_data }}
---

An image generator, made with AlignTok: a diffusion transformer on the latents of the tokenizer in `tokenizer/`.

```python
import aligntok

model = aligntok.load_latent_diffusion("this repository's id")
images = model.sample([0, 1], seeds=[7, 8])  # (2, 3, H, W) in [-1, 1]: of classes 0 and 1, or of prompts
model.tokenizer.processor.to_pil(images)[0].save("sample.png")
```

`latent_diffusion.json` names the generator, and what encodes prompts if it takes any; `tokenizer/config.json` the parts
of the tokenizer. The licence is that of the pretrained encoder's weights and of the training images; fill it in.
"""


def write_card(folder: Path, model: Any, options: dict[str, Any] | None) -> None:
    """Write the README.md of a model that huggingface_hub's mixin makes a card of, with `options` of its template.

    One that is there is its owner's, and stays, unless `options` are given.
    """
    if options is None and (folder / "README.md").exists():
        return
    card = model.generate_model_card(**(options or {}))
    with writing_text(folder / "README.md") as file:
        file.write(str(card))
