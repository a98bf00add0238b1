"""FLUX's transformer: published outputs, sizes and names, prompts and their padding, and weights there and back."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aligntok.diffusion.guidance import classifier_free
from aligntok.engine.compile import blocks_of, listed_blocks
from aligntok.errors import ConfigError, WeightsError
from aligntok.generators import flux_blocks
from aligntok.generators.flux_dit import FluxDiT
from aligntok.ops import attention as plain
from aligntok.registry import GENERATORS
from aligntok.weights.flux import with_diffusers_names

TINY = dict(
    in_channels=8,
    vec_in_dim=12,
    context_in_dim=24,
    hidden_size=64,
    num_heads=4,
    depth=2,
    depth_single_blocks=3,
)


def tiny(**options) -> FluxDiT:
    """A small generator in eval mode whose every weight counts: nothing is at the zero it starts from."""
    torch.manual_seed(0)
    model = FluxDiT(**{**TINY, **options}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def inputs(model, grid=(4, 6), lengths=(7, 3), pad=0):
    """Latents, times and prompts of those lengths, padded to the longest and by `pad` more with what is not zero."""
    draw = torch.Generator().manual_seed(1)
    n, longest = len(lengths), max(lengths)
    text = torch.randn(n, longest, model.context_in_dim, generator=draw)
    y = dict(text=text, pooled=torch.randn(n, model.vec_in_dim, generator=draw))
    x = torch.randn(n, model.in_channels, *grid, generator=draw)
    y["text"] = torch.cat([text, torch.full((n, pad, model.context_in_dim), 3.0)], dim=1)
    y["mask"] = torch.arange(longest + pad) < torch.tensor(lengths)[:, None]
    if model.guidance_embed:
        y["guidance"] = torch.tensor([3.5, 1.0])[:n]
    return x, torch.tensor([0.2, 0.9])[:n], y


def pack(monkeypatch):
    """Have attention pack what is there, as on GPUs, by the kernel that runs here."""
    monkeypatch.setattr(plain, "_device_type", lambda q: "cuda")
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "sdpa")


def row(y, number):
    return {name: each[number : number + 1] for name, each in y.items()}


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# Against published code and checkpoints


def published(shared_dir, name):
    folder = shared_dir / "reference/parity"
    if not (folder / f"{name}.safetensors").is_file():
        pytest.skip(f"the reference of {name} is not at {folder}: parity with published code is not checked")
    said = json.loads((folder / "index.json").read_text())[name]
    tensors = load_file(folder / f"{name}.safetensors")
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    y = dict(text=tensors["txt"], pooled=tensors["y"], guidance=tensors.get("guidance"))
    x, velocity = (tensors[key].mT.unflatten(2, said["grid"]) for key in ("img", "velocity"))
    return said["config"], weights, (x, 1 - tensors["timesteps"], y), -velocity


@pytest.mark.parametrize("text_padding", ["mask", "attend"])
@pytest.mark.parametrize("name", ["flux_plain", "flux_guidance"])
def test_velocity_is_that_of_the_published_code_the_other_way_round(shared_dir, name, text_padding, monkeypatch):
    config, weights, given, velocity = published(shared_dir, name)
    model = GENERATORS.build(dict(type="flux_dit", **config, text_padding=text_padding)).eval()
    model.load_state_dict(weights, strict=True)
    close(model(*given), velocity)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # by what a compiler is given
    close(model(*given), velocity)


def test_the_default_has_the_papers_size():
    with torch.device("meta"):
        model = GENERATORS.build(dict(type="flux_dit"))
        y = dict(text=torch.randn(2, 5, 4096), pooled=torch.randn(2, 768), mask=torch.ones(2, 5, dtype=torch.bool))
        assert model(torch.randn(2, 32, 16, 12), torch.rand(2), y).shape == (2, 32, 16, 12)
    assert sum(p.numel() for p in model.parameters()) == 1_965_931_552
    assert (model.num_heads, model.axes_dim) == (16, (16, 56, 56))
    assert (model.conditioned_on, model.null_class, model.num_classes) == ("prompts", None, 1)


@pytest.mark.parametrize(
    ("parameters", "axes", "options"),
    [
        (560_246_848, (8, 28, 28), dict(hidden_size=1024, depth=8, depth_single_blocks=16, context_in_dim=768)),
        (
            11_901_408_320,
            (16, 56, 56),
            dict(hidden_size=3072, num_heads=24, depth=19, depth_single_blocks=38, guidance_embed=True),
        ),
    ],
    ids=["minFM's flux-tiny", "FLUX.1-dev"],
)
def test_published_shapes_have_their_number_of_parameters(parameters, axes, options):
    with torch.device("meta"):
        model = FluxDiT(in_channels=16, patch_size=2, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.axes_dim == axes
    assert model.img_in.weight.shape[1] == 64  # which published configs call in_channels


def test_heads_of_any_even_width_have_axes_of_even_numbers():
    assert tiny().axes_dim == (4, 6, 6)
    for dim in range(2, 200, 2):
        assert FluxDiT(**{**TINY, "hidden_size": 2 * dim, "num_heads": 2, "depth": 0, "depth_single_blocks": 1})


def test_weights_are_drawn_within_two_deviations_and_blocks_start_unmodulated():
    model = FluxDiT(**TINY)
    for name, parameter in model.named_parameters():
        zero = name.endswith("bias") or "_mod." in name or "odulation" in name
        if zero:
            assert not parameter.any(), name
        elif name.endswith("scale"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.abs().max() <= 0.04, name
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.15), name  # 0.8796 of 0.02, cut at 2
    x = torch.randn(2, 5, 64)
    shifted = model.single_blocks[0](x, torch.randn(2, 64), torch.ones(2, 5, 16), None)
    assert torch.equal(shifted, x)


# Diffusers' class


SIZES = [
    dict(),
    dict(in_channels=3, patch_size=2, hidden_size=48, num_heads=3, depth=1, depth_single_blocks=1),
    dict(hidden_size=64, num_heads=2, depth=1, depth_single_blocks=4, guidance_embed=True, axes_dim=(8, 12, 12)),
]


@pytest.fixture(scope="module")
def diffusers_class():
    return pytest.importorskip("diffusers").FluxTransformer2DModel


def diffusers_velocity(theirs, model, x, t, y):
    """Velocity to data (N, C, h, w) of diffusers' class, by plain code."""
    n, c, h, w = x.shape
    p = model.patch_size
    packed = x.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // p**2, c * p * p)
    places = torch.tensor([[0.0, i, j] for i in range(h // p) for j in range(w // p)])
    more = dict(guidance=y["guidance"]) if "guidance" in y else {}
    found = theirs(
        hidden_states=packed,
        encoder_hidden_states=y["text"],
        pooled_projections=y["pooled"],
        timestep=1 - t,
        img_ids=places,
        txt_ids=torch.zeros(y["text"].shape[1], 3),
        **more,
    ).sample
    found = found.view(n, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5)
    return -found.reshape(n, c, h, w)


@pytest.mark.parametrize("options", SIZES)
def test_an_export_computes_the_same_in_diffusers_and_comes_back(options, tmp_path, diffusers_class):
    model = tiny(**options, text_padding="attend")
    model.export_diffusers(tmp_path / "flux")
    theirs, info = diffusers_class.from_pretrained(tmp_path / "flux", output_loading_info=True)
    assert not any(info.values())
    x, t, y = inputs(model)
    with torch.no_grad():
        expected = diffusers_velocity(theirs.eval(), model, x, t, y)
        close(model(x, t, y), expected)
    back = FluxDiT(**{**TINY, **options})
    back.load_weights(tmp_path / "flux" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_diffusers_has_besides_is_nothing_in_an_export(tmp_path, diffusers_class):
    """A pooled text of any value where there is none, and biases of 0."""
    model = tiny(vec_in_dim=0, qkv_bias=False, text_padding="attend")
    model.export_diffusers(tmp_path / "flux")
    theirs = diffusers_class.from_pretrained(tmp_path / "flux").eval()
    x, t, y = inputs(model)
    del y["pooled"]
    with torch.no_grad():
        close(diffusers_velocity(theirs, model, x, t, {**y, "pooled": torch.full((2, 1), 9.0)}), model(x, t, y))


def test_diffusers_own_folder_of_shards_loads(tmp_path, diffusers_class):
    model = tiny()
    model.export_diffusers(tmp_path / "whole")
    theirs = diffusers_class.from_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="400KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    for folder in ("shards", "whole"):
        back = FluxDiT(**TINY)
        back.load_weights(tmp_path / folder)
        assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    index = tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["x_embedder.weight"] = "../whole/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(said))
    with pytest.raises(WeightsError, match="which is no file in that folder; FluxDiT takes a folder of one"):
        FluxDiT(**TINY).load_weights(tmp_path / "shards")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="has 0 .safetensors files and 0 indexes; FluxDiT takes a folder of one"):
        FluxDiT(**TINY).load_weights(tmp_path)


def test_weights_by_either_names_are_all_there_or_refused(tmp_path):
    state = tiny().state_dict()
    for named, lost in ((state, "double_blocks.0.img_attn.qkv.weight"), (with_diffusers_names(state, 64), "norm_out")):
        for change in ("lost", "more"):
            given = {name: each.contiguous() for name, each in named.items()}
            given = (
                {k: v for k, v in given.items() if not k.startswith(lost)}
                if change == "lost"
                else {**given, "more": torch.ones(1)}
            )
            save_file(given, tmp_path / "w.safetensors")
            with pytest.raises(WeightsError, match="missing (double_blocks|final_layer)|unknown more"):
                FluxDiT(**TINY).load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(mlp_ratio=2.0), "has mlp_ratio=4.0 alone, this model 2.0"),
        (dict(theta=2000), "has theta=10000 alone, this model 2000"),
    ],
)
def test_what_diffusers_cannot_compute_is_not_exported(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        tiny(**options).export_diffusers(tmp_path / "flux")
    assert not (tmp_path / "flux").exists()


# Padding


@pytest.mark.parametrize("patch_size", [1, 2])
def test_nothing_depends_on_padding_where_it_is_masked(patch_size):
    model = tiny(patch_size=patch_size)
    x, t, y = inputs(model)
    found = model(x, t, y)
    close(model(*inputs(model, pad=5)), found)
    for number, length in enumerate((7, 3)):
        alone = row(y, number)
        alone = dict(text=alone["text"][:, :length], pooled=alone["pooled"])
        close(model(x[number : number + 1], t[number : number + 1], alone), found[number : number + 1])


def test_padding_may_stand_anywhere():
    """All text stands at one place, so that its order has no meaning."""
    model = tiny()
    x, t, y = inputs(model)
    turned = {**y, "text": y["text"].flip(1), "mask": y["mask"].flip(1)}
    close(model(x, t, turned), model(x, t, y))


def test_all_text_counts_where_it_is_attended_to():
    model = tiny(text_padding="attend")
    x, t, y = inputs(model)
    unmasked = {name: each for name, each in y.items() if name != "mask"}
    assert torch.equal(model(x, t, y), model(x, t, unmasked))
    assert (model(*inputs(model, pad=5)) - model(x, t, y)).abs().max() > 0.01


@pytest.mark.parametrize("way", ["masked", "packed", "as a compiler is given it"])
def test_gradients_of_masked_text_are_those_of_each_prompt_alone(way, monkeypatch):
    model = tiny()
    x, t, y = inputs(model, pad=2)
    along = torch.randn(x.shape)
    alone = []
    for i, length in enumerate((7, 3)):
        prompt = dict(text=y["text"][i : i + 1, :length], pooled=y["pooled"][i : i + 1])
        alone.append((model(x[i : i + 1], t[i : i + 1], prompt) * along[i]).sum())
    expected = torch.autograd.grad(sum(alone), [*model.parameters()])
    if way == "packed":
        pack(monkeypatch)
    if way == "as a compiler is given it":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = torch.autograd.grad((model(x, t, y) * along).sum(), [*model.parameters()])
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)


# Inputs


def test_wrong_inputs_are_told_in_a_sentence():
    model = tiny()
    x, t, y = inputs(model)
    wrong = {
        "text encoder's states are 20 wide, the generator's context_in_dim is 24": dict(text=torch.randn(2, 7, 20)),
        "takes 'pooled' \\(2, 12\\) beside the text, and there is none": dict(pooled=None),
        "takes 'pooled' \\(2, 12\\), was given \\(2, 9\\)": dict(pooled=torch.randn(2, 9)),
        "takes 'mask' \\(2, 7\\), was given \\(2, 5\\)": dict(mask=torch.ones(2, 5)),
        "takes no 'guidance' beside the text, and was given one": dict(guidance=torch.ones(2)),
        "takes no 'txt' beside the text, and was given one; a prompt has text, mask": dict(txt=torch.ones(2)),
        "text \\(2, L, 24\\) among them, was given text \\(3, 7, 24\\)": dict(text=torch.randn(3, 7, 24)),
    }
    for said, changed in wrong.items():
        with pytest.raises(ConfigError, match=f"FluxDiT.* {said}"):
            model(x, t, {**y, **changed})
    for given, kind in ((torch.zeros(2, dtype=torch.long), "Tensor"), (dict(text=["a", "b"]), "dict"), (["a"], "list")):
        with pytest.raises(ConfigError, match=f"takes a prompt's tensors by name, .* was given {kind};"):
            model(x, t, given)
    with pytest.raises(ConfigError, match="takes no 'pooled' beside the text"):
        tiny(vec_in_dim=0)(x, t, y)
    with pytest.raises(ConfigError, match="takes 'guidance' \\(2,\\) beside the text, and there is none"):
        tiny(guidance_embed=True)(x, t, y)
    with pytest.raises(ConfigError, match="FluxDiT: a latent of .*multiples of patch_size = 4"):
        tiny(patch_size=4)(x, t, y)
    with pytest.raises(ConfigError, match="FluxDiT takes latents \\(N, 8, h, w\\), was given \\(2, 7, 4, 6\\)"):
        model(x[:, 1:], t, y)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(text_padding="masked"), "no text_padding named 'masked'; did you mean 'mask'"),
        (dict(num_heads=5), "hidden_size=64 with num_heads=5 has no heads whose channels turn in pairs"),
        (dict(axes_dim=(4, 6, 8)), r"axes_dim=\(4, 6, 8\) of heads of 16; it is three even numbers, 16 together"),
        (dict(axes_dim=(5, 5, 6)), "three even numbers"),
        (dict(axes_dim=(8, 8)), "three even numbers"),
    ],
)
def test_options_that_make_no_transformer_are_told(options, said):
    with pytest.raises(ConfigError, match=said):
        GENERATORS.build(dict(type="flux_dit", **{**TINY, **options}))


def test_a_generator_without_pooled_text_needs_none():
    model = tiny(vec_in_dim=0)
    assert not any("vector_in" in name for name in model.state_dict())
    x, t, y = inputs(tiny())
    assert model(x, t, dict(text=y["text"], mask=y["mask"])).shape == x.shape


def test_a_prompt_of_no_token_leaves_the_image_to_itself():
    model = tiny()
    x, t, y = inputs(model)
    nothing = {**y, "text": y["text"][:, :0], "mask": y["mask"][:, :0]}
    close(model(x, t, {**y, "mask": torch.zeros_like(y["mask"])}), model(x, t, nothing))


# What trains it


def test_recomputed_activations_leave_gradients_as_they_are():
    model = tiny().train()
    given = inputs(model)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        found.append(torch.autograd.grad(model(*given).square().sum(), [*model.parameters()]))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_joint_heads_have_the_gradients_of_their_formula():
    """Of RMS norms and rotations as they are written, in float64."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, n, 3, 2, 4, requires_grad=True) for n in (3, 5)]
    norms = [flux_blocks.QKNorm(4) for _ in qkv]
    weights = [nn.init.normal_(weight) for norm in norms for weight in norm.parameters()]
    angles = torch.randn(5, 2)
    table = torch.stack([angles.cos(), angles.sin()]).repeat_interleave(2, dim=-1)
    along = torch.randn(3, 2, 2, 8, 4)
    found = flux_blocks.joint_heads([(qkv[0], norms[0], None), (qkv[1], norms[1], table)])
    found = torch.stack(found)
    gradients = torch.autograd.grad((found * along).sum(), [*qkv, *weights])
    wide = [each.detach().double().requires_grad_() for each in (*qkv, *weights)]
    turns = [torch.zeros(3, 2).double(), angles.double()]
    expected = [[], [], []]
    for x, (*own,), turn in zip(wide[:2], (wide[2:4], wide[4:]), turns, strict=True):
        for i in range(3):
            part = x[:, :, i].transpose(1, 2)
            if i < 2:
                part = part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * own[i]
                even, odd = part[..., ::2], part[..., 1::2]
                pairs = even * turn.cos() - odd * turn.sin(), odd * turn.cos() + even * turn.sin()
                part = torch.stack(pairs, dim=-1).flatten(-2)
            expected[i].append(part)
    expected = torch.stack([torch.cat(each, dim=2) for each in expected])
    close(found.double(), expected)
    wanted = torch.autograd.grad((expected * along).sum(), wide)
    for own, other in zip(gradients, wanted, strict=True):
        close(own.double(), other)


def test_half_precisions_heads_are_normed_and_turned_in_float32_and_kept_as_they_came(monkeypatch):
    """Rounded once on each way, by both ways; nothing of float32 is kept but a number a head."""
    qkv = torch.randn(2, 5, 3, 2, 8).bfloat16().requires_grad_()
    norm, table, along = flux_blocks.QKNorm(8), torch.ones(2, 5, 8).div(2**0.5), torch.randn(3, 2, 2, 5, 8)
    kept, found = [], []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
            heads = torch.stack(flux_blocks.joint_heads([(qkv, norm, table)]))
        if not compiling:
            assert sum(each.numel() for each in kept if each.dtype == torch.float32) == 2 * 5 * 2 * 2 + 2 * 8
        assert heads.dtype == torch.bfloat16
        found.append([heads, *torch.autograd.grad((heads * along).sum(), [qkv, *norm.scales])])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0.02, atol=0.02)


def test_its_blocks_are_units_of_compilation_and_shares():
    model = tiny()
    assert listed_blocks(model) == [*model.double_blocks, *model.single_blocks]
    outside = [block for block in blocks_of(model) if block not in listed_blocks(model)]
    assert outside == [model.time_in, model.vector_in]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("packs", [False, True])
def test_compiled_blocks_compute_the_same_and_not_anew_for_other_lengths(packs, monkeypatch):
    model, graphs = tiny(), []
    expected = [model(*inputs(model, lengths=lengths)) for lengths in ((7, 3), (5, 7))]
    if packs:
        pack(monkeypatch)

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    for block in listed_blocks(model):
        block.compile(backend=count)
    close(model(*inputs(model)), expected[0])
    made = len(graphs)
    assert made >= 2
    close(model(*inputs(model, lengths=(5, 7))), expected[1])
    assert len(graphs) == made


def test_states_of_text_encoders_in_half_precision_are_taken():
    model = tiny(guidance_embed=True)
    x, t, y = inputs(model)
    half = {name: each if name == "mask" else each.bfloat16() for name, each in y.items()}
    wide = {name: each if name == "mask" else each.float() for name, each in half.items()}
    assert torch.equal(model(x, t.bfloat16(), half), model(x, t.bfloat16().float(), wide))


def test_a_prompt_is_guided_away_from_another_of_the_same_length():
    model = tiny()
    x, t, y = inputs(model)
    null = {**row(y, 0), "mask": torch.arange(7)[None] < 2}
    found = classifier_free(model, y, null, 3.0)(x, t)
    weak = model(x, t, {name: torch.cat([each, each]) for name, each in null.items()})
    close(found, weak + 3 * (model(x, t, y) - weak))


def test_a_copy_is_independent():
    model = tiny()
    before, other = model(*inputs(model)), copy.deepcopy(model)
    other.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
    assert torch.equal(model(*inputs(model)), before)
    assert not other(*inputs(model)).any()


def test_half_precision_is_near():
    model = tiny()
    given = inputs(model)
    expected = model(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*given)
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
