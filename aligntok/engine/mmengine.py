"""The parts of mmengine that a training is made of."""

from __future__ import annotations

from aligntok.imports import without

with without("transformers"):  # which mmengine 0.10.7 imports for its Adafactor: three seconds of every start
    from mmengine.hooks import Hook as Hook
    from mmengine.model import BaseModel as BaseModel
    from mmengine.optim import OptimWrapper as OptimWrapper
    from mmengine.optim import OptimWrapperDict as OptimWrapperDict
    from mmengine.optim.optimizer.builder import register_transformers_optimizers as register_transformers_optimizers
    from mmengine.optim.scheduler.param_scheduler import _ParamScheduler as _ParamScheduler
    from mmengine.runner import BaseLoop as BaseLoop
    from mmengine.runner import IterBasedTrainLoop as IterBasedTrainLoop
    from mmengine.runner import Runner as Runner
    from mmengine.runner import ValLoop as ValLoop
    from mmengine.visualization.vis_backend import BaseVisBackend as BaseVisBackend
    from mmengine.visualization.vis_backend import LocalVisBackend as LocalVisBackend
