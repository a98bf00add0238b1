"""LightningDiT: published outputs, sizes and parameter counts, and what its options change."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from aligntok.engine.compile import blocks_of
from aligntok.errors import ConfigError, WeightsError
from aligntok.generators import lightning_dit
from aligntok.generators.dit_blocks import HeadNorm, ModulatedNorm
from aligntok.generators.lightning_dit import SIZES, TABLES, LightningDiT
from aligntok.ops.embeddings import axial_rotations, embed_grid
from aligntok.registry import GENERATORS

TINY = dict(input_size=4, in_channels=6, hidden_size=48, depth=2, num_heads=3, num_classes=7)
PARITY = ("plain", "qknorm", "mlp_layernorm", "patch2_woshift")
VARIANTS = [
    {},
    dict(use_qknorm=True),
    dict(use_swiglu=False, use_rope=False, use_rmsnorm=False, use_qknorm=True),
    dict(patch_size=2, wo_shift=True),
]


def tiny(**options) -> LightningDiT:
    """A small generator in eval mode whose every weight counts: nothing is at the zero it starts from."""
    torch.manual_seed(0)
    model = LightningDiT(**{**TINY, **options}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def inputs(*grid, count=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, *(grid or (4, 4)), generator=generator)
    return x, torch.rand(count, generator=generator), torch.tensor([0, 3, 7])[:count]


def published(shared_dir, name):
    folder = shared_dir / "reference/parity"
    config = json.loads((folder / "index.json").read_text())[f"lightningdit_{name}"]["config"]
    tensors = load_file(folder / f"lightningdit_{name}.safetensors")
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    return config, weights, tensors


def layout(shared_dir, name):
    lines = (shared_dir / f"reference/checkpoint_layouts/{name}.tsv").read_text().splitlines()
    return {key: json.loads(f"[{shape.strip('(),')}]") for key, shape in (line.split("\t") for line in lines)}


# Against published code and checkpoints


@pytest.mark.parametrize("name", PARITY)
def test_velocity_is_that_of_the_published_code(shared_dir, name):
    config, weights, tensors = published(shared_dir, name)
    model = GENERATORS.build(dict(type="lightning_dit", **config)).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        velocity = model(tensors["x"], tensors["t"], tensors["y"])
    torch.testing.assert_close(velocity, tensors["velocity"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PARITY)
def test_positions_are_those_of_the_published_code(shared_dir, name):
    config, weights, _ = published(shared_dir, name)
    model = LightningDiT(**config)
    positions, rotations = model.tables(*model.grid)
    torch.testing.assert_close(positions[None], weights["pos_embed"], rtol=0, atol=1e-6)
    if config["use_rope"]:
        both = torch.stack([weights["feat_rope.freqs_cos"], weights["feat_rope.freqs_sin"]])
        torch.testing.assert_close(rotations, both, rtol=0, atol=1e-6)
    else:
        assert rotations is None


@pytest.mark.parametrize(("name", "use_qknorm"), [("", False), ("_qknorm", True)])
def test_published_xl_checkpoints_load_strictly(shared_dir, name, use_qknorm):
    shapes = layout(shared_dir, f"lightningdit_xl_1_f16d32{name}")
    with torch.device("meta"):
        model = LightningDiT("XL", use_qknorm=use_qknorm)
        model.load_state_dict({key: torch.empty(shape) for key, shape in shapes.items()}, strict=True)
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert own == {key: shape for key, shape in shapes.items() if key not in TABLES}


#: Of the published code's models: millions of parameters, hidden size, depth, heads.
PUBLISHED = {
    "S": (32.89, 384, 12, 6),
    "B": (130.36, 768, 12, 12),
    "L": (457.89, 1024, 24, 16),
    "XL": (674.96, 1152, 28, 16),
    "1p0B": (1029.01, 1536, 24, 24),
    "1p6B": (1631.31, 1792, 28, 28),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_have_their_published_shape_and_number_of_parameters(size):
    with torch.device("meta"):
        model = LightningDiT(size)
    millions, width, depth, heads = PUBLISHED[size]
    trained = sum(p.numel() for p in model.parameters())
    assert trained / 1e6 == pytest.approx(millions, abs=0.005)
    assert (model.hidden_size, len(model.blocks), model.blocks[0].attn.num_heads) == (width, depth, heads)
    assert model.head_dim == width // heads
    assert model.blocks[-1].attn.num_heads == heads


def test_no_size_is_left_out():
    assert PUBLISHED.keys() == SIZES.keys()


def test_the_default_is_the_papers_with_675_26_million_and_its_table():
    with torch.device("meta"):
        model = GENERATORS.build(dict(type="lightning_dit"))
        assert model(torch.randn(2, 32, 16, 16), torch.rand(2), torch.zeros(2, dtype=torch.long)).shape[1:] == (
            32,
            16,
            16,
        )
    assert sum(p.numel() for p in model.parameters()) == 674_961_824
    assert sum(p.numel() for p in (*model.parameters(), *model.buffers())) == 675_256_736


def test_a_published_file_loads_and_its_averages_are_taken(shared_dir, tmp_path):
    config, weights, tensors = published(shared_dir, "plain")
    raw = {key: torch.zeros_like(value) for key, value in weights.items()}
    averages = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"model": raw, "ema": averages, "opt": {"step": 1}, "config": dict(lr=1e-4)}, tmp_path / "xl.pt")
    model = LightningDiT(**config).eval()
    model.load_weights(tmp_path / "xl.pt")
    with torch.no_grad():
        velocity = model(tensors["x"], tensors["t"], tensors["y"])
    torch.testing.assert_close(velocity, tensors["velocity"], rtol=0, atol=1e-5)


def test_weights_of_another_shape_are_named(tmp_path):
    torch.save(tiny(use_qknorm=True).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="unknown blocks.0.attn.q_norm.weight"):
        tiny().load_weights(tmp_path / "w.pt")


def with_tables(model, grid):
    cos, sin = axial_rotations(*grid, model.head_dim)
    tables = dict(zip(TABLES, (embed_grid(*grid, model.hidden_size)[None], cos, sin), strict=True))
    return {**model.state_dict(), **tables}


@pytest.mark.parametrize("grid", [(4, 4), (6, 6)])
def test_position_tables_are_left_out_wherever_the_generator_sits(grid):
    outer = nn.ModuleDict({"generator": tiny()})
    state = {f"generator.{key}": value.bfloat16() for key, value in with_tables(outer["generator"], grid).items()}
    outer.load_state_dict(state, strict=True)
    assert set(state) - set(outer.state_dict()) == {f"generator.{name}" for name in TABLES}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_positions_are_refused(name, tmp_path):
    model = tiny()
    state = with_tables(model, (4, 4))
    state[name] = state[name] * 1.1
    with pytest.raises(RuntimeError, match=rf"the checkpoint's {name}, .* trained with other positions"):
        model.load_state_dict(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="trained with other positions"):
        model.load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", TABLES)
def test_tables_may_be_rounded_by_a_hundredth_and_no_more(name):
    model = tiny()
    for off, fits in ((0.009, True), (-0.009, True), (0.011, False), (-0.011, False)):
        state = with_tables(model, (4, 4))
        state[name] = state[name] + off * torch.eye(*state[name].shape[-2:])
        if fits:
            model.load_state_dict(state)
        else:
            with pytest.raises(RuntimeError, match="trained with other positions"):
                model.load_state_dict(state)


def test_tables_of_the_configured_grid_are_told_from_those_of_a_square_with_as_many_patches():
    wide = tiny(input_size=(2, 8))
    wide.load_state_dict(with_tables(wide, (2, 8)))
    with pytest.raises(RuntimeError, match="is not the fixed table of a grid of 2 x 8 patches"):
        wide.load_state_dict(with_tables(wide, (4, 4)))
    wide.load_state_dict(with_tables(wide, (3, 3)))
    with pytest.raises(RuntimeError, match="is not the fixed table of a grid of 4 x 4 patches"):
        wide.load_state_dict(with_tables(wide, (2, 9)))


def test_the_norms_add_a_millionth_to_the_mean_square():
    """Of a thousandth everywhere, whose mean square, or variance, is a millionth too: divided by its root of 2."""
    small, none = 1e-3 * torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), torch.zeros(1, 1, 4)
    expected = (small * 1e3 / 2**0.5).flatten().tolist()
    for norm in (ModulatedNorm(4, use_rmsnorm=True), ModulatedNorm(4, use_rmsnorm=False)):
        assert norm(small, none).flatten().tolist() == pytest.approx(expected, rel=1e-5)
        assert norm(small, none + 1, none + 5).flatten().tolist() == pytest.approx([5 + 2 * x for x in expected])
    assert HeadNorm(4)(small).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    weighted = ModulatedNorm(4, use_rmsnorm=True)
    nn.init.constant_(weighted.weight, 3.0)
    assert weighted(small, none + 1, none + 5).flatten().tolist() == pytest.approx([5 + 6 * x for x in expected])


@pytest.mark.parametrize("shifted", [True, False])
def test_the_norms_gradients_are_those_of_its_formula(shifted):
    """Of the norm as it is written, in float64."""
    torch.manual_seed(0)
    norm = ModulatedNorm(6, use_rmsnorm=True)
    nn.init.normal_(norm.weight)
    x, scale, shift = (torch.randn(2, n, 6, requires_grad=True) for n in (5, 1, 1))
    given = [x, scale, norm.weight, *[shift] * shifted]
    weights = torch.randn(2, 5, 6)
    found = torch.autograd.grad((norm(x, scale, shift if shifted else None) * weights).sum(), given)
    wide = [each.detach().double().requires_grad_() for each in given]
    plain = wide[0] / (wide[0].square().mean(-1, keepdim=True) + 1e-6).sqrt() * wide[2] * (1 + wide[1])
    plain = plain + wide[3] if shifted else plain
    expected = torch.autograd.grad((plain * weights).sum(), wide)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_large_batch_passes_the_blocks_few_rows_at_a_time_where_nothing_is_kept(monkeypatch):
    """Seven rows of 16 tokens of width 48, with room for three of them: 3, 3 and 1. With gradients all at once."""
    monkeypatch.setattr(lightning_dit, "NUMBERS_AT_ONCE", 3 * 16 * 48)
    model, (x, t, y) = tiny(), inputs(count=1)
    x, t, y = torch.randn(7, *x.shape[1:]), torch.rand(7), torch.arange(7)
    rows = []
    model.blocks[-1].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    whole = model(x, t, y)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), whole)
    assert rows == [7, 3, 3, 1]


def test_no_latents_have_no_velocity():
    x, t, y = inputs(count=0)
    assert tiny()(x, t, y).shape == (0, 6, 4, 4)


def test_tables_show_a_wrong_use_rope():
    turned, unturned = tiny(), tiny(use_rope=False)
    with pytest.raises(RuntimeError, match=r"use_rope=False, but .* trained with use_rope=True"):
        unturned.load_state_dict(with_tables(turned, (4, 4)))
    state = {**unturned.state_dict(), "pos_embed": embed_grid(4, 4, 48)[None]}
    with pytest.raises(RuntimeError, match=r"use_rope=True, but .* trained with use_rope=False"):
        turned.load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
def test_a_generator_built_on_the_meta_device_has_its_tables_once_loaded(assign):
    model = tiny()
    with torch.device("meta"):
        built = LightningDiT(**TINY).eval()
    if not assign:
        built.to_empty(device="cpu")
    built.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(built(*inputs()), model(*inputs()))


def test_tables_of_before_are_forgotten_once_weights_are_loaded():
    """A model from the meta device has undefined tables until then, and someone may have looked at them."""
    model = tiny()
    with torch.device("meta"):
        built = LightningDiT(**TINY).eval()
    built.to_empty(device="cpu")
    built.pos_embed.fill_(float("nan"))
    assert built.tables(4, 4)[0].isnan().all()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(*inputs()), model(*inputs()))


def test_a_copy_is_independent():
    model = tiny()
    before, other = model(*inputs()), copy.deepcopy(model)
    other.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
    assert torch.equal(model(*inputs()), before)
    assert not other(*inputs()).any()


# The grid


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (8, 2)])
def test_any_grid_of_whole_patches_gives_a_velocity_of_its_shape(options, grid):
    velocity = tiny(**options)(*inputs(*grid))
    assert velocity.shape == (3, 6, *grid)
    assert velocity.isfinite().all()


def test_velocity_depends_on_the_grid_given_not_on_the_one_configured():
    model, other = tiny(input_size=4), tiny(input_size=(6, 8))
    assert other.grid == (6, 8)
    for grid in ((4, 4), (6, 8), (3, 5)):
        assert torch.equal(model(*inputs(*grid)), other(*inputs(*grid)))


def test_a_grids_positions_are_rows_and_columns_of_their_own():
    wide, tall = (embed_grid(*grid, 8).view(*grid, 2, 4) for grid in ((3, 5), (5, 3)))
    assert torch.equal(wide, tall.transpose(0, 1).flip(2))  # transposed: columns are rows
    assert torch.equal(wide, embed_grid(5, 5, 8).view(5, 5, 2, 4)[:3])
    assert len(embed_grid(3, 5, 8).unique(dim=0)) == 15


@pytest.mark.parametrize("options", [{}, dict(use_rope=False)])
def test_tokens_know_where_they_are_in_both_directions(options):
    model, (x, t, y) = tiny(**options), inputs(3, 5)
    for dim in (2, 3):
        assert not torch.allclose(model(x.flip(dim), t, y).flip(dim), model(x, t, y), atol=1e-3)


def test_tokens_lie_in_memory_one_after_the_other():
    for options in VARIANTS:  # a view of channels-first memory here would slow every operation after it
        assert tiny(**options).x_embedder(inputs(2, 6)[0]).is_contiguous()


def test_every_token_reaches_every_other():
    x, t, y = inputs(3, 5)
    x.requires_grad_()
    tiny()(x, t, y)[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, 2, 4].abs().min() > 0
    assert not x.grad[1].any()


def test_tables_are_made_once_a_grid_and_serve_training_after_sampling():
    model, grid = tiny(), (2, 3)
    with torch.inference_mode():
        model(*inputs(*grid))
    tables = model.tables(*grid)
    model(*inputs(*grid)).sum().backward()
    assert all(a is b for a, b in zip(tables, model.tables(*grid), strict=True))
    assert torch.equal(tables[0], embed_grid(*grid, 48))
    assert torch.equal(tables[1], axial_rotations(*grid, 16))
    assert model.tables(*model.grid)[0] is model.pos_embed


# The condition


def test_time_and_class_matter():
    model, (x, t, y) = tiny(), inputs()
    velocity = model(x, t, y)
    assert not torch.allclose(model(x, t + 0.1, y), velocity, atol=1e-4)
    assert not torch.allclose(model(x, t, (y + 1) % 7), velocity, atol=1e-4)


@pytest.mark.parametrize("num_classes", [1, 7, 20])
def test_the_null_class_comes_after_the_last_class(num_classes):
    model = tiny(num_classes=num_classes)
    assert model.null_class == num_classes
    assert model.y_embedder.embedding_table.num_embeddings == num_classes + 1
    x, t, _ = inputs()
    assert model(x, t, torch.full((3,), num_classes)).shape == x.shape


def test_one_class_without_dropout_is_unconditional():
    model = tiny(num_classes=1, class_dropout_prob=0.0)
    assert model.null_class is None
    assert model.y_embedder.embedding_table.num_embeddings == 1
    x, t, _ = inputs()
    assert model(x, t, torch.zeros(3, dtype=torch.long)).shape == x.shape


def test_it_drops_no_label_itself_in_training():
    model, (x, t, y) = tiny(class_dropout_prob=0.9).train(), inputs()
    assert torch.equal(model(x, t, y), model.eval()(x, t, y))


# Training


def test_velocity_starts_at_zero_and_blocks_as_the_identity():
    model = LightningDiT(**TINY)
    assert not model(*inputs()).any()
    tokens, c = torch.randn(3, 16, 48), torch.randn(3, 48)
    assert torch.equal(model.blocks[0](tokens, c, model.tables(4, 4)[1]), tokens)
    for name, parameter in model.named_parameters():
        zero = "adaLN" in name or name.startswith("final_layer.linear") or name.endswith("bias")
        assert parameter.any() != zero, name


def test_weights_start_with_their_published_deviations():
    """Embedders of time and label normal with 0.02; Xavier's uniform for the others, a patch's as one vector."""
    torch.manual_seed(0)
    model = LightningDiT(hidden_size=96, depth=1, num_heads=3, in_channels=16, patch_size=2, num_classes=500)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not parameter.any():
            continue
        values, (rows, columns) = parameter.detach().flatten(1), parameter.flatten(1).shape
        if name.startswith(("t_embedder", "y_embedder")):
            assert float(values.std()) == pytest.approx(0.02, rel=0.03), name
            assert values.abs().max() > 0.06, name  # normal, not uniform
        else:
            bound = (6 / (rows + columns)) ** 0.5
            assert 0.98 * bound < float(values.abs().max()) <= bound * (1 + 1e-6), name
            assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.03), name
    assert all((p == 1).all() for name, p in model.named_parameters() if "norm" in name and name.endswith("weight"))


@pytest.mark.parametrize("options", VARIANTS)
def test_every_weight_has_a_gradient_and_checkpointing_gives_the_same_and_keeps_less(options):
    model, gradients, kept = tiny(**options), [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = model(*inputs()).square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        kept.append(sum(sizes))
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert kept[1] < kept[0] / 2


def test_a_model_of_half_precision_and_one_under_autocast_are_close_to_the_full_one():
    for options in VARIANTS:
        model = tiny(**options)
        full = model(*inputs(2, 6))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(*inputs(2, 6))
            mixed.float().sum().backward()
        half = model.bfloat16()(*(v.bfloat16() if v.is_floating_point() else v for v in inputs(2, 6)))
        assert half.dtype == torch.bfloat16
        for other in (mixed, half):
            assert (other.float() - full).norm() < 0.05 * full.norm(), options


def test_tables_follow_the_models_precision():
    model = tiny()
    model(*inputs())
    model.double()
    x, t, y = inputs()
    assert model(x.double(), t, y).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("options", VARIANTS)
def test_blocks_compile_whole(options):
    model, (x, t, y) = tiny(**options), inputs()
    velocity = model(x, t, y)
    found = blocks_of(model)
    assert found[-2:] == list(model.blocks)
    for block in found:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(x, t, y), velocity)
    model.set_grad_checkpointing(True)
    model(x, t, y).sum().backward()


def test_attention_is_the_shared_one(monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "xformers")
    with pytest.raises(ConfigError, match="attention backend 'xformers' was forced"):
        tiny()(*inputs())


# Options and inputs that do not fit


def test_a_number_beside_the_size_comes_instead_of_the_sizes():
    with torch.device("meta"):
        model = LightningDiT("B", depth=3, patch_size=2, mlp_ratio=3)
    assert (model.hidden_size, len(model.blocks), model.head_dim, model.grid) == (768, 3, 64, (8, 8))
    assert model.blocks[0].mlp.w3.in_features == 1536


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size="xl"), "no size named 'xl'; .*known: S, B, L, XL, 1p0B, 1p6B"),
        (dict(size="XXL"), "did you mean 'XL'"),
        (dict(num_heads=5), r"hidden_size=48 with num_heads=5, .* multiple of 4 \* num_heads"),
        (dict(num_heads=8), r"multiple of 4 \* num_heads"),  # heads of 6, which cannot turn in both directions
        (dict(num_heads=0), "num_heads=0"),
        (dict(hidden_size=0), "hidden_size=0"),
        (dict(input_size=0), "describe no grid"),
        (dict(input_size=(4, 0)), "describe no grid"),
        (dict(input_size=(4, 5), patch_size=2), "describe no grid"),
        (dict(depth=0), "depth=0 is no transformer"),
        (dict(input_size=5, patch_size=2), "input_size=5 and patch_size=2 describe no grid"),
        (dict(input_size=(4, 4, 4)), "describe no grid; give a side"),
        (dict(patch_size=0), "describe no grid"),
        (dict(num_classes=0), "num_classes is 0; it must be 1 or more"),
        (dict(in_channels=0), "in_channels is 0; it must be 1 or more"),
        (dict(class_dropout_prob=1.0), "class_dropout_prob=1.0 must be at least 0 and below 1"),
    ],
)
def test_options_that_describe_no_generator_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LightningDiT(**{**TINY, **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(3, 5, 4, 4)), r"takes latents \(N, 6, h, w\), was given \(3, 5, 4, 4\); its in_channels"),
        (dict(x=torch.zeros(3, 6, 4)), r"takes latents \(N, 6, h, w\), was given \(3, 6, 4\)"),
        (dict(x=torch.zeros(3, 6, 4, 3)), r"a latent of \(4, 3\); its sides must be multiples of patch_size = 2"),
        (dict(x=torch.zeros(3, 6, 0, 4)), r"a latent of \(0, 4\); its sides must be multiples"),
        (dict(t=torch.tensor(0.5)), r"takes t \(3,\), one for each latent, was given \(\); repeat"),
        (dict(y=torch.zeros(2, dtype=torch.long)), r"takes y \(3,\), one for each latent, was given \(2,\)"),
        (dict(y=torch.zeros(3)), r"labels y as whole numbers, was given torch.float32; convert"),
        (dict(y=torch.tensor([0, 8, 1])), "labels from 0 to 8, .* allowed are 0 to 6, and 7 for the null"),
        (dict(y=torch.tensor([0, -1, 1])), "labels from -1 to 1, but"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    given = dict(zip(("x", "t", "y"), inputs(), strict=True)) | change
    with pytest.raises(ConfigError, match=message):
        tiny(patch_size=2)(**given)


def test_without_dropout_there_is_no_null_class_to_ask_for():
    with pytest.raises(ConfigError, match=r"labels from \d to 7, .* allowed are 0 to 6; set"):
        tiny(class_dropout_prob=0.0)(*inputs())


def test_tables_lie_where_the_model_does():
    positions, rotations = tiny().to("meta").tables(2, 3)
    assert positions.is_meta
    assert rotations.is_meta
