"""The optimisers of a run, by side, and which of its steps are left out."""

from __future__ import annotations

import inspect
import logging
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import Tensor, nn

from aligntok.annotations import check_keywords
from aligntok.device import device
from aligntok.distributed import any_process
from aligntok.distributed.parallel import whole
from aligntok.engine.mmengine import OptimWrapper, OptimWrapperDict, register_transformers_optimizers
from aligntok.errors import CheckpointError, ConfigError, DivergenceError, first_line, unknown
from aligntok.io.values import count, number
from aligntok.registry import find_class

SIDES = ("autoencoder", "discriminator", "generator")


def check_optimizer(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless ``dict(type=..., ...)`` is an optimiser of torch that descends, and its keywords.

    It takes a step of parameters of one, two and four dimensions, one of them without a gradient to speak of.
    """
    name = config.get("type")
    if name == "Adafactor" and name not in OPTIMIZERS.module_dict:
        register_transformers_optimizers()
    optimizer = find_class(OPTIMIZERS, name, "torch.optim.Optimizer", f"{where}: optimiser")
    if not (inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer)):
        raise ConfigError(f"{where}: {unknown('optimiser', name, _known_optimizers())}")
    options = {key: value for key, value in config.items() if key != "type"}
    who = f"{where}: optimiser '{name}'"
    if "params" in options:
        raise ConfigError(f"{who}: params are what the stage trains; leave them out")
    check_keywords(optimizer, options, who=who)
    for key, value in options.items():
        if isinstance(value, int | float) and abs(value) > (most := _HIGHEST.get(key, _HIGHEST_OF_ALL)):
            raise ConfigError(f"{who}: {key}={value!r}; it must be at most {most:g}")
    if isinstance(rate := options.get("lr"), int | float) and 0 <= rate < _LOWEST_RATE:
        raise ConfigError(f"{who}: lr={rate!r} trains nothing; {_LOWEST_RATE:g} is the least")
    if not (options.get("capturable") and device().type == "cuda"):  # what is captured steps on a GPU alone
        _take_a_step(config, who)


#: The largest values of keywords of optimisers, where torch has no bound of its own.
_HIGHEST = {"lr": 100.0, "weight_decay": 10.0} | dict.fromkeys(("eps", "momentum", "dampening", "alpha", "rho"), 1.0)
_HIGHEST_OF_ALL = 1e9
_LOWEST_RATE = 1e-12  # a ten-thousandth of the last bit of a weight of 0.1


def _known_optimizers() -> list[str]:
    kinds = OPTIMIZERS.module_dict.items()
    return sorted(name for name, kind in kinds if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer))


def _take_a_step(config: Mapping[str, Any], who: str) -> None:
    """Raise ConfigError unless the optimiser steps downhill from zero, and stays where there is no slope."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2,), (2, 2), (2, 2, 1, 1))]
    for slope, parameter in zip((0.0, 1.0, 1.0), parameters, strict=True):
        parameter.grad = torch.full_like(parameter, slope)
    try:
        OPTIMIZERS.build({**config, "params": parameters}).step()
    except Exception as error:  # whatever torch, or a stranger's optimiser, says of its keywords
        raise ConfigError(f"{who} cannot take a step ({first_line(error)}); correct its keywords") from error
    if not all(bool((parameter <= 0).all()) for parameter in parameters):  # NaN neither
        raise ConfigError(f"{who} does not descend: a step leads up, or to what is not finite; correct its keywords")


def side_of(part: str) -> str:
    """Return whose optimiser steps a part: the discriminator and a generator have their own."""
    return part if part in SIDES else SIDES[0]


class PartOptimizers(OptimWrapperDict):
    """Steps all sides at once, unless the guard leaves the step out.

    `loss_scaling`: for fp16 autocast, gradients arrive multiplied by `loss_scale`, which follows what float16 can hold.
    """

    def __init__(
        self,
        guard: SkippedSteps,
        clip_grad_norm: float | None,
        loss_scaling: torch.amp.GradScaler,
        **sides: OptimWrapper,
    ) -> None:
        super().__init__(**sides)
        self.guard = guard
        #: Whether the last step was taken; where it was left out, its forward passes' buffers are to be put back.
        self.took_step = True
        self.clip_grad_norm = clip_grad_norm
        self.scaler = loss_scaling
        self._settings = {side: _settings(wrapper.optimizer) for side, wrapper in sides.items()}

    def loss_scale(self, device: torch.device) -> Tensor:
        """Return the scalar, on `device`, that this step's losses are to be multiplied with; 1 without fp16."""
        return self.scaler.scale(torch.ones((), device=device))

    def step_parts(self, parts: Mapping[str, nn.Module], losses: Sequence[Tensor]) -> dict[str, Tensor]:
        """Apply the gradients of `parts` and clear them; return each part's gradient norm (before clipping).

        A part without parameters, such as an adapter that hands on what it gets, has neither.

        `losses` are this process's values; one that is not finite in any process leaves the step out in all. Raises
        DivergenceError as :class:`aligntok.engine.optim.SkippedSteps` does.
        """
        parts = {name: part for name, part in parts.items() if next(part.parameters(), None) is not None}
        sides = {side: [name for name in parts if side_of(name) == side] for side in SIDES}
        gradients = {name: [p.grad for p in part.parameters() if p.grad is not None] for name, part in parts.items()}
        stepping = [side for side in self.optim_wrappers if any(gradients[name] for name in sides[side])]
        if self.scaler.is_enabled():
            for side in stepping:
                self.scaler.unscale_(self[side].optimizer)
        norms = {name: _total_norm(gradients[name], part) for name, part in parts.items()}
        values = torch.stack([*norms.values(), *(loss.to(next(iter(norms.values()))) for loss in losses)]).tolist()
        finite = not any_process(not all(math.isfinite(value) for value in values[len(norms) :]))
        seen = dict(zip(norms, values, strict=False))
        self.took_step = self.guard.passes(seen, finite)
        if self.took_step:
            for side in stepping:
                if self.clip_grad_norm is not None:
                    # Of what has been waited for already: to ask a GPU once more would take as long again.
                    norm = torch.tensor([seen[name] for name in sides[side]], dtype=norms[sides[side][0]].dtype).norm()
                    factor = self.clip_grad_norm / (norm + 1e-6)
                    all_of_side = [gradient for name in sides[side] for gradient in gradients[name]]
                    torch._foreach_mul_(all_of_side, float(factor.clamp(max=1.0)))
                self[side].step()
        if self.scaler.is_enabled() and stepping:
            self.scaler.update()
        for wrapper in self.optim_wrappers.values():
            wrapper.zero_grad()
        scalars = {f"grad_norm/{name}": norm for name, norm in norms.items()}
        if self.scaler.is_enabled():
            scalars["loss_scale"] = self.loss_scale(next(iter(norms.values())).device)
        return {**scalars, "skipped_steps": torch.tensor(float(self.guard.skipped))}

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors: both optimisers, the guard, the loss scale."""
        sides = {side: wrapper.optimizer.state_dict() for side, wrapper in self.optim_wrappers.items()}
        return {"sides": sides, "guard": self.guard.state_dict(), "loss_scale": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the settings (lr, betas, ...) of the config and not of the checkpoint.

        Where a schedule moved the learning rate, it stays moved by the same factor. Raises CheckpointError when the
        state is that of other optimisers or parameters.
        """
        own = self.optim_wrappers
        if sorted(state["sides"]) != sorted(own):
            raise CheckpointError(
                f"the checkpoint has optimisers of {', '.join(state['sides'])}, the config of {', '.join(own)}; "
                "set losses, discriminator and trainable back, or train the stage anew in another work_dir"
            )
        for side, saved in state["sides"].items():
            optimizer = self[side].optimizer
            for group, wanted in zip(saved["param_groups"], self._settings[side], strict=False):
                group["fused"] = wanted.get("fused")  # decides on which device torch puts the count of steps
            try:
                optimizer.load_state_dict(saved)
            except ValueError as error:
                raise CheckpointError(
                    f"the checkpoint's optimiser of the {side} does not fit the config's ({first_line(error)}); "
                    "set optimizer, losses and trainable back, or train the stage anew in another work_dir"
                ) from error
            _restore_settings(optimizer, self._settings[side])
        self.guard.load_state_dict(state["guard"])
        if self.scaler.is_enabled() and state["loss_scale"]:
            self.scaler.load_state_dict(state["loss_scale"])


def optimizer_bytes(config: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]) -> int:
    """Return what an optimiser keeps, once it has taken a step, of float32 parameters of these shapes."""
    return sum(number * _state_bytes(config, shape) for shape, number in Counter(shapes).items())


def _state_bytes(config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    how = ("fused", "foreach", "capturable")  # which change what is kept by some single numbers
    options = {key: value for key, value in config.items() if key not in how}

    def kept(device: str) -> int:
        parameter = nn.Parameter(torch.zeros(shape, device=device))
        parameter.grad = torch.zeros_like(parameter)
        optimizer = OPTIMIZERS.build({**options, "params": [parameter]})
        optimizer.step()
        states = (each for each in optimizer.state[parameter].values() if isinstance(each, Tensor))
        return sum(each.numel() * each.element_size() for each in states)

    try:
        return kept("meta")
    except (RuntimeError, NotImplementedError):  # it looks at a value
        return kept("cpu")


class KeptBuffers:
    """The buffers of a module before a step, such as running statistics and the vectors of a spectral norm.

    A forward pass changes them, with whatever it was given, before anyone can tell whether the step will be taken.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules, self._kept = [*module.modules()], dict[tuple[int, str], Tensor]()

    def _now(self) -> dict[tuple[int, str], Tensor]:
        owners = ((i, module) for i, module in enumerate(self._modules) if module._buffers)
        return {(i, name): each for i, module in owners for name, each in module._buffers.items() if each is not None}

    @torch.no_grad()
    def keep(self) -> None:
        """Take copies of them as they are now."""
        now = self._now()
        if {key: each.shape for key, each in now.items()} == {key: each.shape for key, each in self._kept.items()}:
            torch._foreach_copy_([*self._kept.values()], [*now.values()])
        else:
            self._kept = {key: each.clone() for key, each in now.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them what they were."""
        for key, each in self._now().items():
            if key in self._kept:
                each.copy_(self._kept[key])


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def _restore_settings(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        moved = group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
        unchanged = group.get("initial_lr", group["lr"]) == wanted["lr"]
        rate = group["lr"] if unchanged else wanted["lr"] * moved  # the division would cost a bit of exactness
        group.update({**wanted, "lr": rate})
        if "initial_lr" in group:
            group["initial_lr"] = wanted["lr"]


def _total_norm(gradients: list[Tensor], part: nn.Module) -> Tensor:
    if not gradients:  # on the part's device, so that norms can be stacked
        return torch.zeros((), device=next(part.parameters()).device)
    return whole(torch.nn.utils.get_total_norm(gradients))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartOptimizersConstructor:
    """mmengine's constructor protocol: builds :class:`PartOptimizers` for a model that has ``trained_parts()``.

    The config has an optimiser config for each side that the model has (see `SIDES`), `clip_grad_norm`, and the guard's
    keywords (:class:`SkippedSteps`). Losses are scaled where the model computes in float16.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Any = None) -> None:
        self.config = dict(optim_wrapper_cfg)

    def __call__(self, model: Any) -> PartOptimizers:
        parts = getattr(model, "module", model).trained_parts()
        sides: dict[str, OptimWrapper] = {}
        for side in SIDES:
            chosen = [part for name, part in parts.items() if side_of(name) == side]
            parameters = [p for part in chosen for p in part.parameters() if p.requires_grad]
            if parameters:
                config = dict(self.config[side])
                takes = inspect.signature(OPTIMIZERS.get(config["type"])).parameters
                if "fused" in takes and not config.get("foreach"):
                    config.setdefault("fused", True)  # one kernel for all of Adam's arithmetic
                sides[side] = OptimWrapper(OPTIMIZERS.build({**config, "params": parameters}))
        guard = SkippedSteps(self.config["max_skipped"], self.config["spike_factor"], self.config.get("skip"))
        device = next(p for part in parts.values() for p in part.parameters()).device.type
        scaling = torch.amp.GradScaler(device, enabled=getattr(model, "module", model).precision == "fp16")
        return PartOptimizers(guard, self.config["clip_grad_norm"], scaling, **sides)


logger = logging.getLogger("aligntok.engine")
WINDOW = 100  # norms of a part that the typical one is taken from; a part is not judged before so many


class SkippedSteps:
    """Judges a step before it is taken, by what all processes see alike.

    `spike_factor`: a part whose gradient norm is more than so many times its median over the last 100 steps taken has
    a spike (None: no such check). `skip`: a norm that none may be above, and after how many steps (None: no check).
    `max_skipped` steps left out in a row stop the training.
    """

    def __init__(self, max_skipped: int, spike_factor: float | None, skip: tuple[float, int] | None = None) -> None:
        self.max_skipped, self.spike_factor, self.skip = max_skipped, spike_factor, skip or (math.inf, 0)
        self.judged = self.skipped = self.skipped_in_a_row = 0
        self._norms: dict[str, deque[float]] = {}

    def passes(self, norms: Mapping[str, float], losses_are_finite: bool) -> bool:
        """Tell whether the step should be taken; remember its norms if so.

        `norms` are the parts' gradient norms over the whole batch; 0 is a part without gradients. Raises
        DivergenceError when more than `max_skipped` steps in a row should not.
        """
        fault = self._fault(norms, losses_are_finite)
        self.judged += 1
        if fault is None:
            self.skipped_in_a_row = 0
            for name, norm in norms.items():
                if norm:
                    self._norms.setdefault(name, deque(maxlen=WINDOW)).append(norm)
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        logger.warning("step left out (%d in a row): %s", self.skipped_in_a_row, fault)
        if self.skipped_in_a_row > self.max_skipped:
            raise DivergenceError(
                f"{self.skipped_in_a_row} steps in a row had to be left out, the latest for {fault}; max_skipped_steps "
                f"allows {self.max_skipped}. Training stopped, and the checkpoints hold the weights from before. "
                "Lower the learning rate, set clip_grad_norm, or train in fp32; if the gradients have good reason to "
                "be so large, raise spike_factor and skip_norm or set them to None"
            )
        return False

    def _fault(self, norms: Mapping[str, float], losses_are_finite: bool) -> str | None:
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            return f"gradients that are not finite (parts: {', '.join(broken)})"
        if not losses_are_finite:
            return "a loss that is not finite"
        for name, norm in norms.items():
            if norm > self.skip[0] and self.judged >= self.skip[1]:
                return f"a gradient norm of {norm:.4g} in {name}, which is over skip_norm={self.skip[0]:g}"
            taken = self._norms.get(name, ())
            typical = statistics.median(taken) if len(taken) == WINDOW else math.inf
            if self.spike_factor is not None and norm > self.spike_factor * typical:
                return f"a gradient norm of {norm:.4g} in {name}, {norm / typical:.0f} times the usual {typical:.4g}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        norms = {name: list(values) for name, values in self._norms.items()}
        counts = {name: getattr(self, name) for name in ("judged", "skipped", "skipped_in_a_row")}
        return {**counts, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.skipped, self.skipped_in_a_row = count(state["skipped"]), count(state["skipped_in_a_row"])
        self.judged = count(state.get("judged", 0))  # of a checkpoint from before it was counted
        self._norms = {name: deque(map(number, values), maxlen=WINDOW) for name, values in state["norms"].items()}
