"""torch.compile, block by block."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
import torch._functorch.config as functorch_config
from torch import nn

from aligntok.annotations import check_keywords
from aligntok.errors import ConfigError, first_line

logger = logging.getLogger("aligntok.engine")
#: The environment variable of torch's that says where compiled code is kept; torch by itself takes a temporary folder.
FOLDER = "TORCHINDUCTOR_CACHE_DIR"
RECOMPILE_LIMIT = 64
GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record CUDA graphs


def compile_blocks(
    modules: Iterable[nn.Module | None], options: Mapping[str, Any], apart: Collection[nn.Parameter] = ()
) -> None:
    """Compile the blocks inside `modules`, in place; names of weights stay. `options` are keywords of torch.compile.

    A block is an element of a module list or sequence, or a module with children that holds no such list. Blocks
    compile faster than whole networks, equal ones once; and the last layers, where gradient ratios are found, stay
    outside or in a small graph of their own, so that finding a ratio does not walk a whole compiled network backward.
    Blocks with a weight that is set `apart` are left as they are: a compiled one does not say what its layers give.
    Raises what :func:`check_compile` and :func:`keep_compiled` do.
    """
    check_compile(options, "compile")
    keep_compiled()
    # The ratio is found first and the block walked after it, so a graph's saved tensors must outlive one walk. torch
    # 2.14 gives them away after the first unless this is off.
    functorch_config.donated_buffer = False
    # All blocks of a class share one count of compilations, and a decoder has blocks of many widths and sizes.
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, RECOMPILE_LIMIT)
    for module in modules:
        if module is not None:
            for block in blocks_of(module):
                if not any(weight is each for weight in apart for each in block.parameters()):
                    block.compile(**options)


def check_compile(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for keywords that torch.compile does not take, and for those that record CUDA graphs.

    A graph's outputs lie where the next call of a compiled block writes, and a block's input is the output of another.
    """
    check_keywords(torch.compile, dict(options), who="compile")
    try:
        torch.compile(nn.Identity(), **options)
    except Exception as error:  # whatever a backend or the modes have to say
        raise ConfigError(f"{where}: torch.compile takes no compile={options} ({first_line(error)})") from error
    own = options.get("options") or {}
    if options.get("mode") in GRAPHS or own.get("triton.cudagraphs"):
        raise ConfigError(
            f"{where}: compile={dict(options)} records CUDA graphs, of which one block's overwrite what another has "
            "given; take mode='max-autotune-no-cudagraphs', or leave it out"
        )


def keep_compiled() -> Path | None:
    """Have torch keep what it compiles for later runs, and return the folder; None: it cannot be kept for long.

    Raises ConfigError when the environment names a folder that cannot be written.
    """
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if _named():
            raise ConfigError(
                f"compile: {folder}, where compiled code is kept, cannot be written ({error.strerror}); correct "
                f"{FOLDER}, or leave it out"
            ) from error
        logger.warning(
            "%s cannot be written (%s), so compiled code is not kept: every start compiles anew, unless %s names a "
            "folder that can",
            folder,
            error.strerror,
            FOLDER,
        )
        return None
    os.environ[FOLDER] = str(folder)
    return folder


def compiled_folder() -> Path:
    """Return where compiled code is kept: in the user's cache, by version of torch, unless the environment says."""
    if named := _named():
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "aligntok" / "compiled" / f"torch-{torch.__version__}"


def _named() -> str | None:
    """Return the folder that somebody has named; torch writes its own choice into the environment, too."""
    named = os.environ.get(FOLDER) or None
    own = Path(tempfile.gettempdir(), "torchinductor_")
    return None if named is not None and named.startswith(str(own)) else named


def is_compiled(model: nn.Module) -> bool:
    """Tell whether blocks of a model are compiled, or will be when they first run."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """Return those of its blocks that are elements of a list: transformer blocks, levels of a resolution."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList | nn.Sequential)]
    elements = {id(element) for each in lists for element in each}
    return [block for block in blocks_of(module) if id(block) in elements]


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a module, outermost first; single layers are none."""
    found: list[nn.Module] = []
    for child in module.children():
        inside = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [element for element in inside if list(element.children())]
        elif inside and not any(isinstance(part, nn.ModuleList | nn.Sequential) for part in child.modules()):
            found.append(child)
        else:
            found += blocks_of(child)
    return found
