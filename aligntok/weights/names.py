"""What the files of a model's folder are called, as transformers writes them."""

from __future__ import annotations

CONFIG = "config.json"
#: Files that hold a vocabulary, of which a tokenizer has one.
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
#: What may lie beside it.
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
#: What says how a model that takes images and words sees them.
PROCESSOR = (
    *("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "chat_template.json"),
    "video_preprocessor_config.json",
)
#: Where weights are, whole or with a list of parts; the first that there is.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
