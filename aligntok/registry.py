"""Every registry, one line each. Components come from pluggy plugins, the built-in one too, at the first look-up."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import Registry

from aligntok.annotations import check_keywords, check_values
from aligntok.errors import ConfigError, PluginError, UnknownComponentError, unknown
from aligntok.imports import FAILURES, builds, import_failure, import_object, lacks
from aligntok.plugin_record import LOADING, PLUGIN_RECORDS, PluginRecord

#: What each that is built of a shelf has, as our own code asks it; what mmengine builds it looks at itself.
ASKED = {
    "encoders": ("out_dim", "downsample_factor"),
    "adapters": ("forward",),
    "decoders": ("upsample_factor",),
    "losses": ("at", "inputs"),
    "discriminators": ("forward",),
    "generators": ("in_channels", "conditioned_on"),
    "extractors": ("title", "resize", "identity"),
    "text_encoders": ("dim", "max_tokens", "pooled_dim", "tokenize", "encode", "identity"),
}


class ComponentRegistry(Registry):
    """An mmengine registry whose entries may be import strings, and whose misses say what is known and what failed.

    ``add("name", "package.module.Class")`` costs nothing until the component is asked for. name: of its shelf. kind: of
    a component, in errors. contract: the import string of what a class that is named by its own is a subclass of.
    """

    def __init__(self, name: str, kind: str, parent: Registry | None = None, contract: str = "torch.nn.Module") -> None:
        super().__init__(name, parent=parent, scope="aligntok")
        self.kind = kind
        self.contract = contract
        self.asked = ASKED.get(name, ())
        self.origins: dict[str, PluginRecord] = {}

    def import_from_location(self) -> None:
        """Load the plugins, unless this process has; mmengine's name of what comes before the first look-up."""
        with LOADING:
            if not PLUGIN_RECORDS:
                importlib.import_module("aligntok.plugins").load_plugins()  # by name: nothing here depends on it

    def add(self, name: str, component: type | str, origin: PluginRecord | None = None) -> None:
        """Register a class or its import string under a new name. Raises ConfigError as :meth:`check_new` does."""
        self.check_new(name, component)
        self._module_dict[name] = component
        if origin:
            self.origins[name] = origin

    def check_new(self, name: Any, component: Any) -> None:
        """Raise ConfigError if `name` is none, or taken, naming the owner, or if nothing builds from the component."""
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{self.kind} name {name!r} is no text; add(name, component) takes the name first")
        if not isinstance(component, str) and not builds(component):
            raise ConfigError(
                f"{self.kind} '{name}' is {str(component)[:100]}, which builds none; add a class, or the import string "
                "of one"
            )
        if name in self._module_dict:
            owner = self.origins.get(name)
            by = f" by {owner.distribution} {owner.version}" if owner else ""
            raise ConfigError(f"{self.kind} name '{name}' is taken{by}; choose another name")

    def get(self, key: str) -> Any:
        """Return the component's class, importing it now if it was registered by import string.

        A name with a dot is any importable class that keeps the contract; a name unknown here is looked for in
        mmengine's parent registry, if there is one. Raises UnknownComponentError otherwise.
        """
        self.import_from_location()
        if not isinstance(key, str):
            raise UnknownComponentError(self._missing(str(key)))
        found = self._module_dict.get(key)
        if isinstance(found, str):
            origin = self.origins.get(key)
            try:
                found = import_object(path := found)
            except FAILURES as error:
                reason = import_failure(error, f"{origin.distribution} {origin.version}" if origin else "")
                raise UnknownComponentError(
                    f"{self.kind} '{key}' is registered as {path}, which cannot be imported: {reason}"
                ) from error
            if not builds(found):
                raise UnknownComponentError(
                    f"{self.kind} '{key}' is registered as {path}, which is no class: {found!r}"
                )
            self._module_dict[key] = found
        if found is None:
            found = find_class(self, key, self.contract, self.kind)
        if found is None:
            raise UnknownComponentError(self._missing(key))
        return found

    def find(self, name: str, components: Mapping[str, Any] | None = None) -> Any:
        """Return the class that `components` has under a name, else what :meth:`get` returns."""
        given = (components or {}).get(name) if isinstance(name, str) else None
        return self.get(name) if given is None else given

    def _missing(self, key: str) -> str:
        failed = "; ".join(str(record) for record in PLUGIN_RECORDS if record.error)
        article = "an" if self.kind[0] in "aeiou" else "a"
        return (
            f"{unknown(self.kind, key, list(self))}; "
            + (f"a dotted name imports a subclass of {self.contract}; " if "." in key else "")
            + (f"{failed}; fix or remove that plugin, or " if failed else "")
            + f"install a plugin that gives {article} {self.kind} of that name (`aligntok plugins list`)"
        )

    def check_registered(self, cfg: Any, components: Mapping[str, Any] | None = None) -> None:
        """Raise UnknownComponentError unless a config that a file brings names registered components only.

        Its own type is a name of this registry or one of `components`; the type of a dict inside it, at any depth,
        which the component may build, a name of any registry. Dotted names, names of mmengine's registries and classes
        are refused, and nothing is imported but the plugins that are installed. Raises ConfigError for a keyword that
        would open a file, or fetch one, for the component: a saved model has its weights beside it.
        """
        if not isinstance(cfg, Mapping):
            return
        name = cfg.get("type")
        if not isinstance(name, str) or not (name in self or name in (components or {})):
            raise UnknownComponentError(self._refusal(name))
        for inner in _configs_in([value for key, value in cfg.items() if key != "type"]):
            if not any(inner["type"] in shelf for shelf in shelves().values() if isinstance(inner["type"], str)):
                raise UnknownComponentError(self._refusal(inner["type"]))
        if named := [f"{key}={value!r}" for key, value in keywords_in(cfg) if key in _OPENING and value]:
            raise ConfigError(
                f"{self.kind} {name!r} stands in a file with {', '.join(named)}, which would open other files; weights "
                "are taken from the saved model's own folder alone: correct the file, or save the model again"
            )

    def _refusal(self, name: Any) -> str:
        if isinstance(name, str) and "." not in name:
            return self._missing(name)
        loader = "load_latent_diffusion" if self.kind in ("generator", "text encoder") else "load_tokenizer"
        return (
            f"{self.kind} {name!r} stands in a file, of which only registered names are taken ({', '.join(self)}), and "
            "dotted names are for configs that you wrote yourself: load it with "
            f"{loading_line(loader, [str(name)])}, or install a plugin that registers it"
        )

    def build(
        self, cfg: Any, *args: Any, trusted: bool = True, components: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Build a component from ``dict(type=name, **keywords)``; an object that is built already is returned as is.

        `trusted` False is for a config that a file brings, not its user: see :meth:`check_registered`, which looks
        before anything is imported. `components` are classes by name that are taken beside the registered ones. Raises
        ConfigError when the keywords are not the component's, or their values not what it annotates them with,
        PluginError for one without what each of its kind has, and whatever the component itself raises.
        """
        if not trusted:
            self.check_registered(cfg, components)
        if not isinstance(cfg, dict):
            return cfg
        options = {**kwargs, **cfg}
        name = options.pop("type", None)
        if name is None:
            raise ConfigError(f"{self.kind} config {dict(cfg)} has no 'type'; known: {', '.join(self)}")
        component = name if inspect.isclass(name) else self.find(name, components)
        who = f"{self.kind} '{name}'"
        check_keywords(component, options, who)
        if missing := [key for key in _needed(component) if key not in options]:
            raise ConfigError(f"{who} needs {', '.join(missing)}; give {missing[0]}=... beside its type")
        built = component(**options)
        if self.asked and (without := lacks(built, self.contract, self.asked)):
            raise PluginError(f"{who} has no {', '.join(without)}, as each {self.kind} has; see docs/plugins.md")
        return built

    def check(self, cfg: Any, who: str, also: Sequence[str] = ()) -> None:
        """Raise what :meth:`build` raises of a config before it builds; `who` begins the sentence."""
        if not isinstance(cfg, Mapping) or "type" not in cfg:
            raise ConfigError(f"{who} is {cfg!r}; it must be dict(type=..., ...), of which known are {', '.join(self)}")
        component = cfg["type"] if inspect.isclass(cfg["type"]) else self.get(cfg["type"])
        options = {key: value for key, value in cfg.items() if key != "type"}
        check_keywords(component, options, who=f"{who}: {self.kind} '{cfg['type']}'", also=tuple(also))

    def __iter__(self) -> Iterator[str]:
        self.import_from_location()
        return iter(sorted(self._module_dict))

    def __contains__(self, key: object) -> bool:
        self.import_from_location()
        return key in self._module_dict

    def __len__(self) -> int:
        self.import_from_location()
        return len(self._module_dict)


def _needed(component: Any) -> list[str]:
    """Return the keywords that a component cannot do without."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(component).parameters.values()
    return [each.name for each in parameters if each.kind in named and each.default is each.empty]


def _configs_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every dict with a 'type' inside dicts and lists, at any depth, `value` itself too."""
    if isinstance(value, Mapping):
        if "type" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _configs_in(each)


#: Keywords of components, ours and timm's, by which they read a file or ask a hub for one.
_OPENING = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "path")


def keywords_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every key of dicts with its value, at any depth."""
    if isinstance(value, Mapping):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from keywords_in(each)


def find_class(registry: Registry, name: Any, contract: str, kind: str) -> Any:
    """Return the class that an mmengine registry, or one above it, has under a name, else what a dotted name imports.

    That must be a subclass of `contract`, an import string too. None for all else. Nothing is imported for a name
    without a dot, nor for a scope before it, as mmengine's own look-up does. kind: of what is looked for, in errors.
    Raises UnknownComponentError, which says why, when what the name is of cannot be imported.
    """
    above = registry if isinstance(name, str) else None
    while above is not None:
        if name in above.module_dict:
            return above.module_dict[name]
        above = above.parent
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(map(str.isidentifier, parts)):
        return None
    try:
        found = import_object(name)
    except FAILURES as error:
        raise UnknownComponentError(f"{kind} '{name}' cannot be imported: {import_failure(error)}") from error
    return found if isinstance(found, type) and issubclass(found, import_object(contract)) else None


def dotted_components(config: Any) -> list[str]:
    """Return the import paths that a user's config names as types, at any depth, sorted."""
    named = {each["type"] for each in _configs_in(config) if isinstance(each["type"], str)}
    return sorted(name for name in named if "." in name and not any(name in shelf for shelf in shelves().values()))


def import_components(names: Sequence[str]) -> dict[str, Any]:
    """Import classes by their paths, for `components` of a loader: those of a user's own config that can be imported.

    Whoever builds one of the others says why it cannot.
    """
    found: dict[str, Any] = {}
    for name in names:
        with suppress(*FAILURES):
            found[name] = import_object(name)
    return found


def loading_line(loader: str, names: Sequence[str]) -> str:
    """Return the line that loads what holds components which no registry has."""
    given = ", ".join(f'"{name}": {name.rpartition(".")[2]}' for name in names)
    return f"{loader}(folder, components={{{given}}})"


def default_of(component: Any, keyword: str) -> Any:
    """Return the default of a component's keyword; None where it has no such keyword, or no default."""
    parameter = inspect.signature(component).parameters.get(keyword)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def without_weights(registry: ComponentRegistry, config: Any, components: Mapping[str, Any] | None = None) -> Any:
    """Return a component's config with ``pretrained=False``, if it takes that keyword; what was given is checked.

    What its weights alone said of it, as ``in_place_of_weights(config)`` of its class has it, is said by keywords.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        return config
    component = registry.find(config["type"], components)
    if "pretrained" not in inspect.signature(component).parameters:
        return dict(config)
    given = {"pretrained": config["pretrained"]} if "pretrained" in config else {}
    check_values(component, given, f"{registry.kind} '{config['type']}'")
    said = component.in_place_of_weights(config) if hasattr(component, "in_place_of_weights") else {}
    return {**config, **said, "pretrained": False}


ENCODERS = ComponentRegistry("encoders", "encoder")  # pretrained vision models: images -> features
ADAPTERS = ComponentRegistry("adapters", "adapter")  # features -> latents
DECODERS = ComponentRegistry("decoders", "decoder")  # latents -> images
LOSSES = ComponentRegistry("losses", "loss")  # what the tokenizer minimises
DISCRIMINATORS = ComponentRegistry("discriminators", "discriminator")  # images -> patch logits
GENERATORS = ComponentRegistry("generators", "generator")  # diffusion transformers on the latents
EXTRACTORS = ComponentRegistry("extractors", "extractor")  # 8-bit images -> features to compare sets of images on
TEXT_ENCODERS = ComponentRegistry("text_encoders", "text encoder")  # prompts -> embeddings
DATASETS = ComponentRegistry(
    "datasets", "dataset", MMENGINE_DATASETS, "torch.utils.data.Dataset"
)  # sources of images or latents
METRICS = ComponentRegistry(
    "metrics", "metric", MMENGINE_METRICS, "mmengine.evaluator.BaseMetric"
)  # numbers about images or latents
HOOKS = ComponentRegistry("hooks", "hook", MMENGINE_HOOKS, "mmengine.hooks.Hook")  # what happens between training steps


class Registries(SimpleNamespace):
    """One shelf a registry, those of :func:`shelves`: what a plugin's ``aligntok_register`` is given (each shelf has
    ``add(name, class)``).
    """


def shelves() -> dict[str, ComponentRegistry]:
    """Return every registry by its shelf name, in the order users see them."""
    components = ENCODERS, ADAPTERS, DECODERS, LOSSES, DISCRIMINATORS, GENERATORS, EXTRACTORS, TEXT_ENCODERS
    return {registry.name: registry for registry in (*components, DATASETS, METRICS, HOOKS)}


def with_keywords(given: Any, keywords: Mapping[str, Any], where: str) -> Any:
    """Return the config of a component, given by name or config, with keywords beside; as it is where there are none.

    Raises ConfigError for keywords, named `where`, of no component.
    """
    if not keywords:
        return given
    if given is None:
        raise ConfigError(f"{where} {dict(keywords)} are of no component; name one, or leave them out")
    return {**({"type": given} if isinstance(given, str) else given), **keywords}
