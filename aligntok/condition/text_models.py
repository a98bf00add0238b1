"""The text encoders of a generator of prompts: which they are, loaded once, checked, saved, described."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aligntok.annotations import check_values
from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.registry import TEXT_ENCODERS, default_of, without_weights
from aligntok.settings import AboveZero, Share, settings

#: The generator's keyword for the width of what each text encoder gives.
ROLES = {"tokens": "context_in_dim", "pooled": "vec_in_dim"}
#: Encoders are asked and moved by one thread at a time: a training's, and that of its next step's captions.
_ALONE = threading.RLock()
_SHORT = 12  # digits of an identity that name a folder
#: Their keywords that say where files are, which belong to a machine if it has such a place.
PLACES = ("path", "tokenizer")
_ELSEWHERE = re.compile(r"(package:)?[\w-][\w.-]*/[\w.-]+([@/].*)?")  # a folder of a package, a hub id
_LONGEST = 77  # tokens that are planned for, of a text encoder that does not say how many it takes


@settings
class TextSettings:
    """`generator.text`: what encodes the prompts of a generator that takes them."""

    tokens: dict[str, Any]
    """The text encoder whose states of tokens the generator attends to: a registry name and its keywords."""
    pooled: dict[str, Any] | None = None
    """The one whose vector of the whole prompt joins the time; None: none."""
    dropout: Share = 0.1
    """How often training puts the empty prompt in a caption's place, for both encoders at once."""
    cache: bool | Literal["fp16", "bf16", "fp32"] = False
    """Encode every caption once, into <work_dir>/texts, before the first step, and keep it so precisely, True: as fp16;
    else, as they come. For small sets: a caption of 20 tokens by T5-XXL takes 164 kB."""
    guidance: AboveZero | None = None
    """What weights that were distilled with guidance are told of it, with guidance_embed=True, such as 3.5."""


class TextModels:
    """The text encoders that `text` names, for what a generator takes: its `context_in_dim` and `vec_in_dim`.

    paths: where they are, by "tokens" and "pooled", where `text` does not say: a path, or dict(path=, tokenizer=).
    Raises ConfigError for a pooled prompt that the generator has no use for, or lacks.
    """

    def __init__(
        self,
        generator: Any,
        text: TextSettings,
        paths: Mapping[str, Any],
        components: Mapping[str, Any] | None = None,
    ) -> None:
        self.components = components
        self.widths = {name: getattr(generator, keyword) for name, keyword in ROLES.items()}
        self._configs = {name: dict(own) for name in ROLES if (own := getattr(text, name)) is not None}
        for name, path in paths.items():
            if name not in self._configs:
                raise ConfigError(f"text_encoders: {unknown('part', name, self._configs)}")
            self._configs[name] |= path if isinstance(path, Mapping) else {"path": path}
        for name, config in self._configs.items():
            if "type" not in config:
                known = ", ".join(TEXT_ENCODERS)
                raise ConfigError(f"generator.text.{name} is {config!r}; it must be dict(type=..., ...), of {known}")
        self._encoders: dict[str, Any] | None = None
        if (text.pooled is None) != (self.widths["pooled"] == 0):
            raise ConfigError(
                f"{type(generator).__name__}: vec_in_dim={generator.vec_in_dim}, but generator.text.pooled is "
                f"{text.pooled}; give an encoder that pools, such as dict(type='clip_text', path=...), or "
                "vec_in_dim=0 without one"
            )

    @property
    def encoders(self) -> dict[str, Any]:
        """The text encoders by "tokens" and "pooled", loaded once; one and the same where both are of one config.

        Raises WeightsError for ones that are not there or of another identity, ConfigError for one of another width.
        """
        if self._encoders is None:
            found: dict[str, Any] = {}
            for name, config in self._configs.items():
                same = next((other for other in found if self._configs[other] == config), None)
                found[name] = self._load(name, config) if same is None else found[same]
                self._check_width(name, found[name])
            self._encoders = found
        return self._encoders

    def _load(self, name: str, config: Mapping[str, Any], check: bool = True) -> Any:
        identity, config = config.get("identity"), {key: each for key, each in config.items() if key != "identity"}
        if not config.get("path"):
            raise WeightsError(
                f"generator.text.{name}: the '{config.get('type')}' text encoder has no path; give its folder or hub "
                f"id, as generator.text.{name}.path=... in a config, --text-encoders {name}=... to a command or "
                f"text_encoders=dict({name}=...) to load_latent_diffusion"
            )
        # What a file brings was looked at when it came: names registered, content known by its identity.
        encoder = TEXT_ENCODERS.build(config, trusted=True, components=self.components)
        if check and identity not in (None, encoder.identity):
            raise WeightsError(
                f"generator.text.{name}: the text encoder at {config['path']} is another one (identity "
                f"{encoder.identity[:12]}) than the generator was trained with ({str(identity)[:12]}); give the folder "
                "or hub id of that one"
            )
        return encoder.eval().requires_grad_(False)

    def write(self, folder: Path) -> None:
        """Write the text encoders, each into a folder of its identity's name."""
        for encoder in {id(each): each for each in self.encoders.values()}.values():
            if not hasattr(encoder, "save_pretrained"):
                raise ConfigError(
                    f"a {type(encoder).__name__} has no save_pretrained(folder); leave include_text_encoders out, and "
                    "give its path to whoever loads the generator"
                )
            encoder.save_pretrained(folder / encoder.identity[:_SHORT])

    def check(self) -> None:
        """Raise WeightsError or ConfigError for text encoders that are missing or do not fit; no weights are read."""
        for name in self._configs:
            self._check_width(name, self._empty(name))

    def bytes(self) -> dict[str, int]:
        """Return the bytes of each one's weights, of one that has both parts once. Raises as `check` does."""
        once = [name for name in self._configs if name == "tokens" or self._configs[name] != self._configs["tokens"]]
        found = {name: self._empty(name) for name in once}
        return {
            f"text encoder ({name})": sum(p.numel() * p.element_size() for p in encoder.parameters())
            for name, encoder in found.items()
        }

    def _empty(self, name: str) -> Any:
        """Return a text encoder without memory for its weights."""
        with torch.device("meta"):
            return self._load(name, without_weights(TEXT_ENCODERS, self._configs[name]), check=False)

    def _check_width(self, name: str, encoder: Any) -> None:
        own = encoder.dim if name == "tokens" else encoder.pooled_dim
        keyword = ROLES[name]
        if own is None:
            raise ConfigError(
                f"generator.text.pooled: the '{self._configs[name]['type']}' text encoder gives no pooled vector; give "
                "pool='mean' or 'last' where it takes that, or another encoder"
            )
        if own != self.widths[name]:
            raise ConfigError(
                f"generator.text.{name}: the text encoder gives vectors of width {own}, the generator takes "
                f"{keyword}={self.widths[name]}; set generator.{keyword}={own}, or take the encoder it was made for"
            )

    def longest(self) -> int:
        """Return how many tokens a prompt may have, as far as that is known without loading anything."""
        config = self._configs["tokens"]
        encoder = TEXT_ENCODERS.find(config["type"], self.components)
        given = {key: value for key, value in config.items() if key == "max_tokens"}
        check_values(encoder, given, f"generator.text.tokens: text encoder '{config['type']}'")
        return int(given.get("max_tokens") or default_of(encoder, "max_tokens") or _LONGEST)

    def describe(self) -> dict[str, Any]:
        """Return them by type, hub id, keywords and identity; of no place of this machine."""
        named: dict[str, Any] = dict.fromkeys(ROLES)
        for name, config in self._configs.items():
            shared = {key: value for key, value in config.items() if key not in PLACES or not _is_local(value)}
            named[name] = {**shared, "identity": config.get("identity") or self.encoders[name].identity}
        return named

    def tokens(self, texts: Sequence[str], full: bool) -> dict[str, dict[str, Tensor]]:
        """Return the tokens of texts for each encoder, as :func:`tokens_of` does."""
        return tokens_of({name: encoder.tokenize for name, encoder in self.encoders.items()}, texts, full)

    @torch.no_grad()
    def encode(self, tokens: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Return text, mask and, with an encoder for it, the pooled prompt of tokens, on a device."""
        found: dict[Any, dict[str, Tensor]] = {}  # by encoder: one may have both parts
        with _ALONE:
            for name, encoder in self.encoders.items():
                if encoder not in found:
                    own = {key: tensor.to(device, non_blocking=True) for key, tensor in tokens[name].items()}
                    found[encoder] = encoder.to(device)(**own)
        given = {name: found[self.encoders["tokens"]][name] for name in ("text", "mask")}
        return given | ({"pooled": found[self.encoders["pooled"]]["pooled"]} if "pooled" in self.encoders else {})

    def leave(self, device: torch.device) -> None:
        """Make room on a device: move the encoders from there, once another thread's captions are encoded."""
        if device.type == "cpu":
            return
        with _ALONE:
            if device.type == "cuda":  # what a thread has asked for in a stream of its own may still read the weights
                torch.cuda.synchronize(device)
            for encoder in self.encoders.values():
                encoder.to("cpu")


def split_text(generator: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return a generator's config without its `text`, and that: what encodes its prompts, None without any."""
    own = dict(generator)
    text = own.pop("text", None)
    return own, text


def pinned(generator: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generator's config whose text encoders must have the content that a description names, if it does."""
    own, text = split_text(generator)
    said = described.get("text") or {}
    if text is None:
        return own
    held = {
        name: {**text[name], "identity": said[name]["identity"]} for name in ROLES if text.get(name) and said.get(name)
    }
    return {**own, "text": {**text, **held}}


def paths_of(text: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return where a generator's text encoders are, `path` and `tokenizer` of each, as far as its `text` says.

    What is neither a place that there is nor a package or hub id is a name that a file was left with, of one far away.
    """
    named = {name: (text or {}).get(name) for name in ROLES}
    given = {name: {key: each.get(key) for key in PLACES} for name, each in named.items() if isinstance(each, Mapping)}
    there = {name: {key: at for key, at in each.items() if at and _is_found(at)} for name, each in given.items()}
    return {name: places for name, places in there.items() if "path" in places}


def tokens_of(
    tokenize: Mapping[str, Callable[..., dict[str, Tensor]]], texts: Sequence[str], full: bool
) -> dict[str, dict[str, Tensor]]:
    """Return the tokens of texts for each encoder; all of its longest length for the one whose padding counts."""
    return {name: each(texts, full=full and name == "tokens") for name, each in tokenize.items()}


def saved_encoders(folder: Path, text: Mapping[str, Any]) -> dict[str, Path]:
    """Return where in a folder `save_encoders` wrote a `text`'s encoders, by "tokens" and "pooled"."""
    named = {name: str(text[name]["identity"])[:_SHORT] for name in ROLES if text.get(name)}
    places = {name: folder / short for name, short in named.items() if short.isalnum()}
    return {name: place for name, place in places.items() if place.is_dir() and not place.is_symlink()}


def check_described_text(text: Any) -> None:
    """Raise KeyError, TypeError or ValueError unless it is what `describe` gives, as far as files are found by it."""
    for name in ROLES:
        if (config := text[name]) is not None and not isinstance(config["identity"], str):
            raise ValueError(f"the identity of text.{name} is {type(config['identity']).__name__}")


def check_text_registered(text: Mapping[str, Any], components: Mapping[str, Any] | None) -> None:
    """Raise UnknownComponentError unless the `text` of a file names registered encoders, or some of `components`.

    Their paths may stand there: content is what `identity` says, or refused, and of files none but weights, tokenizer
    and config is read.
    """
    for name in ROLES:
        if isinstance(config := text.get(name), Mapping):
            own = {key: value for key, value in config.items() if key != "path"}
            TEXT_ENCODERS.check_registered(own, components)
            if not isinstance(config.get("identity"), str):
                raise ConfigError(f"generator.text.{name} stands in a file without an identity; save the model again")


def _is_found(path: str | os.PathLike[str]) -> bool:
    """Tell whether there is such a place, or may be elsewhere: in a package, or under a hub id."""
    return os.path.exists(path) or _ELSEWHERE.fullmatch(os.fspath(path)) is not None


def _is_local(path: str | os.PathLike[str] | None) -> bool:
    """Tell whether a text encoder's path is a place of this machine, and no hub id."""
    return path is None or os.path.isabs(path) or os.fspath(path).startswith((".", "~")) or os.path.exists(path)
