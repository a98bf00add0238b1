"""Each concern has one home: whatever in the package does it otherwise, or anew, is found in the source."""

from __future__ import annotations

import ast
import re

import pytest


@pytest.fixture(scope="module")
def found(trees):
    """A function that tells where there are nodes that another says yes to: ``module:function`` or the module alone."""
    everything = []
    for module, tree in trees.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {child: function.name for function in functions for child in ast.walk(function)}  # the innermost
        everything += [(f"{module}:{inside[node]}" if node in inside else module, node) for node in ast.walk(tree)]
    return lambda here: {place for place, node in everything if here(node)}


def called(node):
    """The last name of what a node calls."""
    return getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""


@pytest.fixture(scope="module")
def calls(found):
    return lambda *names: found(lambda node: called(node) in names)


@pytest.fixture(scope="module")
def named(found):
    """A function that tells where a name is defined, taken as a value or given as a keyword."""
    keys = {ast.FunctionDef: "name", ast.Name: "id", ast.Attribute: "attr", ast.keyword: "arg"}
    return lambda *names: found(lambda node: type(node) in keys and getattr(node, keys[type(node)]) in names)


def steps_along(node):
    """A slice of what a loop over range(first, length, size) comes to: x[i : i + size]."""
    return (
        isinstance(node, ast.Slice)
        and node.lower is not None
        and isinstance(node.upper, ast.BinOp)
        and isinstance(node.upper.op, ast.Add)
        and ast.unparse(node.upper.left) == ast.unparse(node.lower)
    )


def strides(node):
    """range(first, end, step), but for literal steps."""
    return called(node) == "range" and len(node.args) == 3 and not isinstance(node.args[2], ast.Constant | ast.UnaryOp)


def test_work_is_cut_shared_out_and_ended_early_in_one_way(found, calls):
    assert found(strides) == {
        "distributed/job.py:batched",
        "training/alignment/__init__.py:validation",  # which images are whose, of a loop that is mmengine's
        "data/images.py:_find_together",  # a share at once, by threads
        "io/pictures.py:_grid",  # rows of a picture; stands below
    }
    cut = found(steps_along) - found(strides)
    assert cut == {
        "distributed/job.py:shares",  # this process's part of a round
        "data/index/sampled.py:read",  # one
        "training/generation/model.py:draws",  # a process's numbers out of the global batch's
        "data/sources/base.py:_has_word",
        "data/stream/cache.py:read",
        "data/stream/order.py:_count_windows",
        "data/stream/order.py:samples",  # what is left of a window
        "data/stream/tables.py:_sample",
        "evaluation/metrics/fid.py:density_coverage",
        "evaluation/report/blocks.py:write_seconds",  # the two largest units
        "sampling/guidance_sweep.py:measure",
    }
    assert calls("start_processes", "ending_together", "catching_sigterm") == {
        "distributed/job.py:job",
        "evaluation/comparison/__init__.py:compare",  # a row of jobs, each of which ends by itself
    }
    assert calls("sigterm_was_sent") == {
        "distributed/job.py:stop_if_preempted",
        "engine/runner.py:run",  # writes a checkpoint first
    }
    assert calls("stop_if_preempted") == {
        "distributed/job.py:shares",
        "evaluation/linear_probe.py:go_through",  # every process takes part in every step
        "training/run.py:_train",
        "sampling/folder.py:write_npz_together",  # one process writes
    }
    assert calls("progress_bar") == {
        "distributed/job.py:shares",
        "check.py:check_folder",  # one process
        "data/check.py:look_at",  # one process
        "data/check.py:_decode",
        "data/images.py:assign_buckets",  # nothing is exchanged
        "data/index/build.py:_read_shards",  # of shards; likewise
        "data/index/check.py:check_index",  # likewise
        "data/index/check.py:_changed_shards",
        "data/latent_shards.py:damaged",  # likewise
        "data/sources/captions.py:_read_beside",  # likewise
        "data/sources/webdataset.py:__init__",  # of shards; likewise
        "data/stream/selection.py:_decided",  # likewise
        "diffusers/pipeline.py:__call__",  # diffusers' own
        "evaluation/linear_probe.py:go_through",
        "evaluation/own_pictures.py:reconstruct_pictures",  # one process
        "sampling/folder.py:write_npz",
    }


def test_loaders_are_made_in_one_way_and_their_ends_explained(calls, named):
    assert calls("DataLoader") == {"data/loader.py:make_loader"}
    assert named("leave_signals_to_parent", "num_workers", "worker_init_fn", "pin_memory") == {
        "data/loader.py:make_loader",
        "data/loader.py:_get_iterator",  # with processes or without
        "distributed/job.py:leave_signals_to_parent",
        "distributed/dcp.py:_to_write",  # no loader's: of what a checkpoint holds
    }
    made = {
        "training/builder.py:_training_batches",  # for mmengine's loops, of engine/runner
        "training/alignment/__init__.py:validation",
        "training/generation/validation.py:_phase",
    }
    explained = {
        "evaluation/images.py:in_rounds",
        "evaluation/linear_probe.py:batches",
        "caching/encoder.py:latent_statistics",
        "data/index/build.py:_read_shards",
    }
    encoding = {"caching/encoder.py:_encode_share"}, {"caching/encoder.py:encode_shards"}
    assert calls("make_loader") == made | explained | encoding[0]
    trained = {"engine/runner.py:run", "evaluation/cost/steps.py:next_batches"}  # batches of mmengine's loader
    assert calls("explaining_loader_errors") == explained | encoding[1] | trained


def test_processes_exchange_through_one_package(found):
    """import-linter sees torch as a whole, so the source is asked."""

    def exchanges(node):
        match node:
            case ast.Import(names=names):
                modules = [each.name for each in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules = [f"{module}.{each.name}" for each in names]
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                return True
            case _:
                return False
        return any(re.match(r"(torch\.distributed|mmengine\.dist)\b", module) for module in modules)

    assert {place.partition("/")[0] for place in found(exchanges)} == {"distributed"}


def test_devices_and_their_arithmetic_are_settled_in_one_module(found, calls, named):
    assert calls("autocast", "set_float32_matmul_precision", "current_device") == {
        "device.py:device",
        "device.py:computing",
        "device.py:whole_on_cpu",
        "device.py:meeting",
        "device.py:multiplying",
    }
    assert named("allow_tf32", "fp32_precision") == {"device.py:multiplying"}
    assert calls("use_deterministic_algorithms") == {"device.py:repeatable"}
    assert named("cudnn") == {
        "device.py:repeatable",
        "device.py:multiplying",
        "environment.py:_torch",  # its version
    }
    assert calls("are_deterministic_algorithms_enabled") == {
        "device.py:repeatable",
        "distributed/parallel.py:begin",  # sums over processes
        "ops/packed.py:_why_not",  # a kernel that does not ask
        "training/run.py:_train",
    }
    assert named("PRECISIONS") == {"device.py", "device.py:computing"}
    assert named("OutOfMemoryError") == {"device.py:is_out_of_memory"}
    asked = found(lambda node: isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda.is_available")
    assert asked == {
        "device.py:allow_repeatable",  # before any GPU is in use
        "device.py:device",
        "distributed/__init__.py:start_processes",  # where it is said which GPU is this process's
    }


def test_random_streams_begin_in_one_table(calls):
    kinds = ("default_rng", "manual_seed", "seed_all", "SeedSequence", "RandomState", "PCG64", "Generator", "Random")
    assert {place.partition(":")[0] for place in calls(*kinds)} == {
        "rng.py",
        "plugins/component_checks.py",  # stands below, and checks components with numbers of its own
    }
    assert calls("standard_normal") == {"rng.py:_normal"}


def test_texts_come_to_the_terminal_in_one_way(found):
    """rich takes what stands in brackets or between colons for markup, names of files among it."""
    assert {
        place.partition(":")[0] for place in found(lambda node: called(node) == "print" and prints_with_rich(node))
    } == {"io/console.py"}


def prints_with_rich(node):
    """A call of print on anything: of a Console, or of what one is called."""
    return isinstance(node.func, ast.Attribute)
