"""One definition of an option: what a settings class takes from configs, Python and the command line, and refuses."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import torch
from pydantic import Field
from pydantic_core import to_jsonable_python

from aligntok.annotations import alternatives, check_values, keywords_checked, parts
from aligntok.cli import analyze_latents
from aligntok.cli.arguments import parse
from aligntok.cli.commands import reporting_errors
from aligntok.decoders.ldm_cnn import LDMDecoder
from aligntok.device import AUTO, PRECISIONS
from aligntok.errors import ConfigError
from aligntok.evaluation.settings import LatentAnalysis
from aligntok.registry import shelves
from aligntok.settings import Count, ImageSize, Precision, check_given, fields_of, read, settings


@settings
class Sampling:
    """Draw samples of a trained generator."""

    steps: Annotated[int, Field(ge=1)] = 30
    """Sampling steps."""
    sampler: Literal["euler", "heun", "ddim"] = "euler"
    """Solver."""
    cfg_scale: Annotated[float, Field(ge=0)] = 1.0
    """Guidance scale;
    1 for none."""
    cfg_interval: tuple[float, float] | None = None
    """Of the times that are guided; None: all."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the sampler's own."""

    def __post_init__(self) -> None:
        if self.sampler == "ddim" and self.steps == 13:
            raise ConfigError("thirteen steps of ddim bring bad luck")


@settings(renamed={"num": "num_images"})
class Validation:
    """Measure."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """At once."""
    num_images: int | None = None
    """Of the data."""


@settings
class Run:
    """Draw and measure."""

    tokenizers: Annotated[tuple[str, ...], Field(min_length=1)]
    """What is run."""
    data: str | Path
    """Images."""
    out: str | Path | None = None
    """Where to."""
    workers: Count = 2
    """Readers."""
    image_size: ImageSize = 256
    """Pixels."""
    seeds: tuple[int, ...] = (0, 1)
    """Of samples."""
    npz: bool = False
    """Write ADM's file too."""
    ceiling: Annotated[float, Field(allow_inf_nan=True)] = float("inf")
    """Infinity is fine here."""
    hooks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """More."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    """How."""
    validation: Validation | None = None
    """None: not."""


GIVEN = dict(tokenizers=["a"], data="b")


def refused(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(steps=True), "sampling: steps=True is bool; it must be int of at least 1"),
        (dict(steps="3"), "sampling: steps='3' is str; it must be int of at least 1"),
        (dict(steps=3.0), "sampling: steps=3.0 is float; it must be int of at least 1"),
        (dict(steps=None), "sampling: steps=None is NoneType; it must be int of at least 1"),
        (dict(steps=0), "sampling: steps=0; it must be int of at least 1"),
        (dict(cfg_scale=True), "sampling: cfg_scale=True is bool; it must be int or float of at least 0"),
        (dict(cfg_scale=float("nan")), "sampling: cfg_scale=nan; it must be finite, int or float of at least 0"),
        (dict(cfg_scale=float("inf")), "sampling: cfg_scale=inf; it must be finite, int or float of at least 0"),
        (dict(cfg_scale=-0.5), "sampling: cfg_scale=-0.5; it must be int or float of at least 0"),
        (
            dict(sampler="eulr"),
            "sampling: sampler='eulr'; did you mean 'euler'? it must be 'euler', 'heun' or 'ddim'",
        ),
        (
            dict(stepz=3),
            "sampling: no key named 'stepz'; did you mean 'steps'? "
            "known: cfg_interval, cfg_scale, options, sampler, steps",
        ),
        (
            dict(cfg_interval=[0.1]),
            "sampling: cfg_interval=[0.1]; it must be (int or float, int or float) or None",
        ),
        (
            dict(cfg_interval=[0.1, True]),
            "sampling: cfg_interval=[0.1, True]; it must be (int or float, int or float) or None",
        ),
        (dict(options=[1]), "sampling: options=[1] is list; it must be dict"),
        (dict(steps=13, sampler="ddim"), "sampling: thirteen steps of ddim bring bad luck"),
        (dict(steps=0, cfg_scale=-1), "sampling: steps=0; it must be int of at least 1 (and 1 more)"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_sentence(given, sentence):
    assert refused(read, Sampling, given, "sampling") == sentence
    assert refused(Sampling, **given) == sentence.replace("sampling", "Sampling", 1)  # in Python too


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(sampling=dict(steps=0)), "a.py: sampling.steps=0; it must be int of at least 1"),
        (dict(validation=dict(batch_size="x")), "a.py: validation.batch_size='x' is str; it must be int of at least 1"),
        (dict(validation=3), "a.py: validation=3 is int; it must be dict or None"),
        (
            dict(validation=dict(batchsize=3)),
            "a.py, validation: no key named 'batchsize'; did you mean 'batch_size'?",
        ),
        (dict(validation=dict(num=3)), "a.py, validation: no key named 'num'; it is called 'num_images' now"),
        (dict(seeds={3}), "a.py: seeds={3} is set; it must be list of int"),
        (dict(tokenizers=[]), "a.py: tokenizers=[]; it must be list of str, 1 or more of them"),
        (dict(data=None), "a.py: data=None is NoneType; it must be str or Path"),
        (dict(image_size=[64, 0]), "a.py: image_size=[64, 0]; it must be int of at least 1 or (int of at least 1"),
        ({3: 4}, "a.py: no key named '3'"),
        (dict(workers=2**31), "a.py: workers=2147483648; it must be int of at least 0, at most 2,147,483,647"),
        (
            dict(image_size=[9, 99_999]),
            "a.py: image_size=[9, 99999]; it must be int of at least 1 or (int of at least 1, int of at least 1), at m",
        ),
    ],
)
def test_a_nested_value_is_named_by_its_path(given, sentence):
    assert refused(read, Run, {**GIVEN, **given}, "a.py").startswith(sentence)


def test_what_is_left_out_and_what_is_no_dict_are_told():
    assert refused(read, Run, dict(data="b"), "a.py") == (
        "a.py: tokenizers is not given; it must be list of str, 1 or more of them"
    )
    assert refused(read, Sampling, 3, "a.py").startswith("a.py is 3; it must be a dict of settings: steps, sampler")


def test_ints_are_floats_lists_are_tuples_dicts_are_settings_and_components_stay_dicts():
    hook = dict(type="EMA", widths=[0.1, 0.2])
    given = dict(image_size=[64, 96], seeds=[3], hooks=(hook,), sampling=dict(cfg_scale=2, cfg_interval=[0, 1]))
    run = read(Run, {**GIVEN, **given, "validation": Validation(batch_size=3)}, "a.py")
    assert (run.tokenizers, run.image_size, run.seeds, run.hooks) == (("a",), (64, 96), (3,), [hook])
    assert run.sampling == Sampling(cfg_scale=2.0, cfg_interval=(0.0, 1.0))
    assert isinstance(run.sampling.cfg_scale, float)
    assert run.validation.batch_size == 3
    assert run.ceiling == float("inf")
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.npz = True
    with pytest.raises(TypeError, match="positional"):
        Sampling(3)


def test_settings_go_through_json_and_come_back():
    run = read(Run, {**GIVEN, "data": Path("x/y"), "ceiling": 3, "sampling": dict(cfg_interval=(0, 1))}, "a.py")
    plain = json.loads(json.dumps(to_jsonable_python(run)))
    assert plain["data"] == "x/y"
    assert plain["sampling"]["cfg_interval"] == [0, 1]
    assert to_jsonable_python(read(Run, plain, "a.json")) == plain


def test_tables_have_each_field_once_with_what_it_may_be_and_means():
    options = {option.name: option for option in fields_of(Run)}
    assert [name for name in options if name.startswith("sampling")] == [
        "sampling",
        *(f"sampling.{name}" for name in ("steps", "sampler", "cfg_scale", "cfg_interval", "options")),
    ]
    assert options["tokenizers"].default is dataclasses.MISSING
    scale = options["sampling.cfg_scale"]
    assert (scale.allowed, scale.default, scale.doc) == (
        "int or float of at least 0",
        1.0,
        "Guidance scale; 1 for none.",
    )
    assert options["image_size"].allowed == "int of at least 1 or (int of at least 1, int of at least 1)"
    assert options["validation"].settings is Validation
    assert options["validation.num_images"].allowed == "int or None"
    assert options["out"].settings is None


@pytest.mark.parametrize("cls", [Sampling, Run, LatentAnalysis])
def test_every_option_has_its_line_of_words_and_a_default_that_is_allowed(cls):
    for option in fields_of(cls):
        assert option.doc.endswith(".") or option.doc.endswith("none."), option.name
        if option.default is not dataclasses.MISSING and "." not in option.name:
            rest = {"tokenizers": ("a",), "data": "b"} if cls is not Sampling else {}
            read(cls, {**rest, option.name: option.default}, "default")


def test_precisions_are_those_that_there_are():
    assert get_args(Precision) == (*PRECISIONS, AUTO)


# The command line


def told(*words):
    return parse(Run, list(words), "run", ("tokenizers", "data"))


def test_a_command_line_gives_what_python_does():
    words = "a b c --image-size 64 96 --seeds 3 4 --npz --steps 5 --cfg-interval 0 0.5 --out None"
    words += " --validation batch_size=3 --options eta=0.5 last=mean --ceiling inf --data_root"
    expected = Run(
        tokenizers=("a", "b"),
        data="c",
        image_size=(64, 96),
        seeds=(3, 4),
        npz=True,
        ceiling=float("inf"),
        sampling=Sampling(steps=5, cfg_interval=(0, 0.5), options={"eta": 0.5, "last": "mean"}),
        validation=Validation(batch_size=3),
    )
    assert told(*words.split()[:-1]) == expected
    assert told("a", "b").image_size == 256
    assert told("a", "hf://owner/name", "--image-size", "64", "--no-npz").data == "hf://owner/name"
    assert told("a", "b", "--steps", "4").sampling.steps == 4
    assert parse(Sampling, ["--options"], "draw") == Sampling()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("a b --steps 0", "run: --steps 0; it must be int of at least 1"),
        ("a b --steps x", "run: --steps x; it must be int of at least 1"),
        (
            "a b --cfg-scale nan",
            "run: --cfg-scale nan; it must be finite, int or float of at least 0",
        ),
        ("a b --sampler eulr", "run: --sampler eulr; did you mean 'euler'? it must be"),
        ("a b --image-size 64x96x3", "run: --image-size 64x96x3; it must be int of at least 1 or (int"),
        ("a b --seeds 1 x", "run: --seeds 1 x; it must be list of int"),
        ("a b --options x", "--options takes key=value, not 'x'"),
        ("a", "run: tokenizers is not given; it must be list of str, 1 or more of them"),
    ],
)
def test_a_flags_value_is_refused_in_one_sentence(words, sentence):
    assert refused(told, *words.split()).startswith(sentence)


def test_words_beyond_the_last_and_old_flags_are_refused():
    assert refused(parse, Run, ["a", "b", "c"], "run", ("data", "out")) == (
        "run takes no more words: c; see run --help"
    )
    assert refused(parse, Validation, ["--num=3"], "run") == "run: --num is called --num-images now"


def test_an_unknown_flag_ends_with_status_2_and_a_suggestion(capsys):
    command = reporting_errors(lambda words: parse(Sampling, words, "draw") and 0)
    with pytest.raises(SystemExit) as ended:
        command(["--step", "3"])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "Perhaps you meant:" in printed
    assert "--steps INT" in printed
    assert "Traceback" not in printed
    assert command(["--steps", "0"]) == 2
    assert capsys.readouterr().err == "ConfigError: draw: --steps 0; it must be int of at least 1\n"


def test_help_has_every_flag_with_its_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        analyze_latents(["--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in fields_of(LatentAnalysis):
        assert option.doc.split(";")[0].rstrip(".") in printed, option.name
        assert option.name in ("tokenizers", "data") or "--" + option.name.replace("_", "-") in printed
    assert "Images, evenly spread over the data; None: all. (default: 10000)" in printed


def test_help_and_import_load_neither_torch_nor_mmengine():
    code = (
        "import sys, aligntok\nassert not {'torch', 'mmengine', 'pydantic', 'tyro'} & {*sys.modules}\n"
        "from aligntok import cli\nassert not {'torch', 'mmengine'} & {*sys.modules}\n"
        "try: cli.main(['analyze-latents', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'mmengine'} & {*sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Keywords of components


class Widget:
    def __init__(
        self,
        sizes: tuple[int, ...] = (1,),
        ratio: float = 1.0,
        kind: Literal["a", "b"] = "a",
        weight: torch.Tensor | None = None,
        unknown: NotThere = None,  # noqa: F821
        bare=3,
        **more: int,
    ) -> None:
        pass


@pytest.mark.parametrize(
    ("component", "options", "sentence"),
    [
        (torch.optim.AdamW, dict(lr=True), "lr=True is bool; it must be int or float or Tensor"),
        (torch.optim.AdamW, dict(betas="1"), "betas='1' is str; it must be (int or float or Tensor, int or"),
        (torch.optim.AdamW, dict(weight_decay=float("nan")), "weight_decay=nan; it must be finite, int or float"),
        (torch.optim.AdamW, dict(lr=float("inf")), "lr=inf; it must be finite, int or float or Tensor"),
        (LDMDecoder, dict(ch=1.5), "ch=1.5 is float; it must be int"),
        (LDMDecoder, dict(ch_mult=[1, "2"]), "ch_mult=[1, '2']; it must be list of int"),
        (LDMDecoder, dict(tanh_out=1), "tanh_out=1 is int; it must be bool"),
        (Widget, dict(kind="c"), "kind='c'; it must be 'a' or 'b'"),
        (Widget, dict(weight=3), "weight=3 is int; it must be Tensor or None"),
    ],
)
def test_a_keyword_that_is_not_what_its_annotation_says_is_refused(component, options, sentence):
    assert refused(check_values, component, options, "it").startswith(f"it: {sentence}")


def test_no_setting_and_no_keyword_takes_a_number_that_is_nothing_to_a_float32():
    for name in ("training.settings", "evaluation.settings", "evaluation.comparison.settings", "sampling.settings"):
        importlib.import_module(f"aligntok.{name}")
    modules = [module for name, module in sys.modules.items() if name.startswith("aligntok.")]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    places = [
        (partial(check_given, cls), field)
        for cls in found
        if "__declared__" in vars(cls)
        for field, annotation in cls.__declared__.items()
        if _takes_a_float(annotation)
    ]
    for registry in shelves().values():
        for component in map(registry.get, registry):
            keywords = keywords_checked(component).items()
            places += [(partial(check_values, component), k) for k, (kind, _) in keywords if _takes_a_float(kind)]
    assert {"process_timeout", "clip_grad_norm", "alpha", "mlp_ratio", "weight"} <= {name for _, name in places}
    for check, name in places:
        assert re.search(rf"{name}=1e-300; it must be .*at least \S+", refused(check, {name: 1e-300}, "it")), name


def _takes_a_float(annotation):
    return float in [parts(each)[0] for each in alternatives(annotation)]


def test_what_fits_or_cannot_be_checked_passes():
    check_values(torch.optim.AdamW, dict(lr=1, betas=[0.9, 0.95], fused=None), "it")
    check_values(LDMDecoder, dict(ch_mult=[1, 2], dropout=0, ch=32), "it")
    tensor = torch.zeros(1)
    check_values(Widget, dict(sizes=[1, 2], ratio=2, weight=tensor, unknown=object(), bare="x", other="y"), "it")
