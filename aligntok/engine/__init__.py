"""The machinery under training, in mmengine's words: runner, loop, hooks, optimiser wrapper, checkpoints, EMA."""
