"""Each metric on a small model: against its formula by hand, the library's own way, and its package's preprocessing."""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from aligntok.cli.arguments import described, parse
from aligntok.errors import ConfigError, WeightsError
from aligntok.evaluation.settings import TextImageSettings
from aligntok.evaluation.text_image import scorers
from aligntok.evaluation.text_image.image_reward import ImageReward
from aligntok.evaluation.text_image.needs import METRICS, PLACES, check_weights
from aligntok.evaluation.text_image.scorers import (
    CLIP,
    Aesthetic,
    CLIPScore,
    HPSv2,
    PickScore,
    Sample,
    Source,
    covered,
    fitted,
)
from aligntok.evaluation.text_image.summary import mean_of, preferred

transformers = pytest.importorskip("transformers")


def pattern(width, height):
    """A picture of stripes and waves."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([(7 * x + 3 * y) % 256, (5 * x * y) % 256, (11 * y + x) % 256], -1).astype(np.uint8)
    )


WORDS = ["a red apple", "a cat on a green photo", "?"]
PICTURES = [pattern(70, 40), pattern(32, 32), pattern(40, 90)]
SAMPLES = [Sample("", words, 0) for words in WORDS]


def scored(scorer, pictures=PICTURES, samples=SAMPLES):
    with torch.inference_mode():
        return scorer([scorer.see(picture) for picture in pictures], samples)


# Preprocessing; constants are what the packages hpsv2 1.2.0 and image-reward 1.5 give, with torchvision 0.29


def test_hpsv2_sees_the_whole_of_a_picture_twice_as_wide_between_two_black_bars():
    seen = fitted(pattern(32, 16), 8)
    black = [-mean / std for mean, std in zip(scorers.MEAN, scorers.STD, strict=True)]
    for channel in range(3):
        for row in (0, 1, 6, 7):
            assert seen[channel, row].tolist() == pytest.approx([black[channel]] * 8)
    inside = [-0.34302106499671936, -0.17547975480556488, 0.0069864667020738125, 0.1745278686285019]
    assert seen[0, 2:6, 3].tolist() == pytest.approx(inside, abs=1e-5)
    assert float(seen.sum()) == pytest.approx(-162.71022033691406, abs=1e-3)


@pytest.mark.parametrize("size", [(448, 224), (97, 40), (40, 97), (224, 100), (64, 64)])
def test_hpsv2s_long_side_is_the_models(size):
    width, height = size
    seen = fitted(Image.new("RGB", size, "white"), 224)
    white = (seen[0] > 0).nonzero()
    wide, high = 1 + (white.max(0).values - white.min(0).values).flip(0)
    assert seen.shape == (3, 224, 224)
    assert (int(wide), int(high)) == tuple(round(side * 224 / max(size)) for side in (width, height))
    left, right = int(white[:, 1].min()), 223 - int(white[:, 1].max())
    assert right - left in (0, 1)  # an odd pixel is on the right


def test_imagereward_and_the_aesthetic_predictor_see_the_middle():
    seen = covered(pattern(21, 12), 8)
    assert seen[:, 4, 3].tolist() == pytest.approx(
        [-0.5659946799278259, -0.9867009520530701, -0.37105458974838257], abs=1e-5
    )
    assert float(seen.sum()) == pytest.approx(-68.20915222167969, abs=1e-3)


@pytest.mark.parametrize("size", [(448, 224), (300, 151), (150, 301), (64, 64), (227, 224)])
def test_pickscore_and_clip_score_see_what_clips_processor_makes_of_a_picture(size):
    theirs = transformers.CLIPImageProcessorPil()(images=[pattern(*size)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(covered(pattern(*size), 224, rounded=False), theirs, atol=1e-6, rtol=0)


# Formulas


@pytest.fixture(scope="module")
def clip(clip_folder):
    return CLIP(clip_folder, "clip")


def library_says(folder, seen):
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(WORDS, padding=True, return_tensors="pt"), pixel_values=torch.stack(seen))


def test_clip_score_is_a_hundred_cosines_and_no_less_than_none(clip, clip_folder, monkeypatch):
    scorer = CLIPScore(clip)
    theirs = library_says(clip_folder, [scorer.see(picture) for picture in PICTURES])
    cosines = (theirs.image_embeds * theirs.text_embeds).sum(1, keepdim=True)  # of length 1
    torch.testing.assert_close(scored(scorer), 100 * cosines.clamp(min=0), atol=1e-4, rtol=0)
    turned = {sign: sign * clip.texts(WORDS) for sign in (1, -1)}
    found = []
    for sign, texts in turned.items():
        monkeypatch.setattr(clip, "texts", lambda _, texts=texts: texts)
        found.append(scored(scorer))
        torch.testing.assert_close(found[-1], 100 * (sign * cosines).clamp(min=0), atol=1e-4, rtol=0)
    assert (torch.minimum(*found) == 0).all()
    assert (torch.maximum(*found) > 0).all()


def test_pickscore_is_the_models_logit(clip_folder):
    scorer = PickScore(CLIP(clip_folder, "pickscore"))
    theirs = library_says(clip_folder, [scorer.see(picture) for picture in PICTURES])
    torch.testing.assert_close(scored(scorer)[:, 0], theirs.logits_per_image.diagonal(), atol=1e-4, rtol=0)
    assert scorer.columns[0].startswith("PickScore-tiny-clip-")


def test_pickscores_of_two_pictures_are_chances_that_sum_to_one():
    x, y = np.array([21.0, 20.0, 20.0, -800.0]), np.array([20.0, 21.0, 20.0, 800.0])
    assert preferred(x, y) == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.5, 0])
    assert (preferred(x, y) + preferred(y, x)).tolist() == pytest.approx([1.0] * 4)


def test_the_aesthetic_predictor_is_linear_layers_on_an_embedding_of_length_one(clip, aesthetic_file):
    scorer = Aesthetic(aesthetic_file, clip, "aesthetic")
    stored = torch.load(aesthetic_file, weights_only=True)
    x = clip.images(torch.stack([scorer.see(picture) for picture in PICTURES])).double()
    assert x.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    for place in (0, 2, 4, 6, 7):
        x = x @ stored[f"layers.{place}.weight"].double().T + stored[f"layers.{place}.bias"]
    torch.testing.assert_close(scored(scorer).double(), x, atol=1e-5, rtol=0)
    other = scored(scorer, samples=[Sample("", "something else", 0)] * 3)
    assert torch.equal(other, scored(scorer))


def test_hpsv2_is_a_cosine_and_not_a_hundred_times_it(hps_file, tmp_path):
    import open_clip

    scorer = HPSv2(hps_file, "2.0", "hpsv2", "ViT-tiny")
    model = open_clip.create_model("ViT-tiny", load_weights=False).eval()
    model.load_state_dict(torch.load(hps_file, weights_only=True)["state_dict"])
    with torch.inference_mode():
        images = model.encode_image(torch.stack([scorer.see(picture) for picture in PICTURES]))
        texts = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(WORDS))
    theirs = F.cosine_similarity(images, texts)
    torch.testing.assert_close(scored(scorer)[:, 0], theirs, atol=1e-6, rtol=0)
    assert scorer.columns == (f"HPSv2-HPS_v2_compressed-{sha(hps_file)[:8]}",)
    (tmp_path / "mine.pt").write_bytes(hps_file.read_bytes())
    assert HPSv2(tmp_path / "mine.pt", "2.1", "hpsv2.1", "ViT-tiny").columns[0].startswith("HPSv2.1-mine-")


def test_imagereward_of_a_small_blip_is_what_its_package_computes(image_reward_folder):
    """The three numbers are those of ViT, BertModel and MLP of image-reward 1.5 on the same weights."""
    words = ["a red apple", "a cat on a green photo of " + "dog " * 40, "?"]  # the second is cut at 35 tokens
    scorer = ImageReward(image_reward_folder, "imagereward")
    found = scored(scorer, samples=[Sample("", each, 0) for each in words])
    theirs = [-0.15474757552146912, -0.22268491983413696, -0.1663563847541809]
    assert found[:, 0].tolist() == pytest.approx(theirs, abs=1e-5)
    alone = scored(scorer, PICTURES[:1], [Sample("", words[0], 0)])
    assert float(alone) == pytest.approx(theirs[0], abs=1e-5)  # padding changes nothing
    assert abs(float(scored(scorer, PICTURES[2:], [Sample("", words[0], 0)])) - theirs[0]) > 1e-3


def test_the_error_of_a_mean_is_that_of_its_prompts():
    mean, error = mean_of(np.array([1.0, 2.0, 3.0, 6.0]), ["a", "b", "c", "d"])
    assert (mean, error) == (3, pytest.approx(math.sqrt(14 / 3) / 2))
    mean, error = mean_of(np.array([1.0, 3.0, 5.0, 7.0]), ["a", "a", "b", "b"])
    assert (mean, error) == (4, pytest.approx(2.0))  # sqrt(2 / 1 (4² + 4²)) / 4
    assert math.isnan(mean_of(np.array([1.0, 3.0]), ["a", "a"]).error)


# What weights are, and whose


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_number_is_called_after_its_model_and_what_is_in_its_file(clip, clip_folder, aesthetic_file, monkeypatch):
    name = f"tiny-clip-{sha(clip_folder / 'model.safetensors')[:8]}"
    assert CLIPScore(clip).columns == (f"CLIPScore-{name}",)
    head = sha(aesthetic_file)
    assert Aesthetic(aesthetic_file, clip, "").columns == (f"Aesthetic-linear-{head[:8]}-other-{name}",)
    monkeypatch.setitem(scorers.PUBLISHED, head, "sac+logos+ava1-l14-linearMSE")
    found = Aesthetic(aesthetic_file, clip, "").columns
    assert found == (f"Aesthetic-sac+logos+ava1-l14-linearMSE-other-{name}",)  # of another CLIP
    monkeypatch.setitem(scorers.PUBLISHED, sha(clip_folder / "model.safetensors"), "clip-vit-large-patch14")
    both = Aesthetic(aesthetic_file, CLIP(clip_folder, ""), "").columns
    assert both == ("Aesthetic-sac+logos+ava1-l14-linearMSE",)


def test_the_identity_is_of_weights_tokenizer_and_preprocessing(clip_folder, tmp_path):
    import shutil

    described = CLIPScore(CLIP(clip_folder, "")).describe()
    assert len(described["identity"]) == 64
    assert described["files"][described["columns"][0].removeprefix("CLIPScore-")]["model.safetensors"] == sha(
        clip_folder / "model.safetensors"
    )
    assert PickScore(CLIP(clip_folder, "")).describe()["identity"] != described["identity"]
    copy = shutil.copytree(clip_folder, tmp_path / "tiny-clip")
    assert CLIPScore(CLIP(copy, "")).describe() == described
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert CLIPScore(CLIP(copy, "")).describe()["identity"] != described["identity"]
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, copy / "model.safetensors", {"format": "pt"})
    assert Source.of(copy, "").name != Source.of(clip_folder, "").name


def test_weights_in_several_files_have_a_name_of_all_of_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    one, both = (Source.of_files("x y", [tmp_path / name for name in names], {}) for names in ("a", "ab"))
    assert one.name == f"x_y-{hashlib.sha256(b'a').hexdigest()[:8]}"
    assert both.name != one.name
    assert list(both.files) == ["a", "b"]


def test_weights_of_another_model_are_refused(clip, image_reward_folder, aesthetic_file, hps_file, tmp_path):
    with pytest.raises(WeightsError, match=r"hpsv2: .*linear.pth does not fit .missing .*unknown layers.0"):
        HPSv2(aesthetic_file, "2.0", "hpsv2", "ViT-tiny")
    with pytest.raises(WeightsError, match="aesthetic: .*HPS_v2_compressed.pt does not fit"):
        Aesthetic(hps_file, clip, "aesthetic")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((image_reward_folder / name).read_bytes())
    (tmp_path / "ImageReward.pt").write_bytes(aesthetic_file.read_bytes())
    with pytest.raises(WeightsError, match=r"imagereward: .*ImageReward.pt is no ImageReward"):
        ImageReward(tmp_path, "imagereward")
    with pytest.raises(WeightsError, match="HPS_v2.1_compressed.pt is of version 2.1; ask for metric 'hpsv2.1'"):
        HPSv2(tmp_path / "HPS_v2.1_compressed.pt", "2.0", "hpsv2", "ViT-tiny")
    with pytest.raises(WeightsError, match="HPS_v2_compressed.pt is of version 2.0; ask for metric 'hpsv2'"):
        HPSv2(tmp_path / "HPS_v2_compressed.pt", "2.1", "hpsv2.1", "ViT-tiny")


def test_a_config_that_declares_far_more_than_its_weights_is_refused_at_once(clip_folder, tmp_path):
    import json
    import shutil

    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    for changes in ({"num_hidden_layers": 10**9}, {"hidden_size": 2**16}):
        said = json.loads((clip_folder / "config.json").read_text())
        said["vision_config"] |= changes
        (copy / "config.json").write_text(json.dumps(said))
        with pytest.raises(WeightsError, match="transformers cannot build a clip .*(it declares|is more than 1000)"):
            CLIP(copy, "clip")


def test_a_file_that_would_run_code_is_refused(clip, tmp_path):
    class Bad:
        def __reduce__(self):
            return print, ("it ran",)

    torch.save({"layers.0.weight": Bad()}, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="head.pth cannot be read as weights"):
        Aesthetic(tmp_path / "head.pth", clip, "aesthetic")


def test_the_examples_give_each_metric_its_weights():
    for example in described(TextImageSettings)[1]:
        asked = parse(TextImageSettings, shlex.split(example)[3:], example, ("samples",))
        with pytest.raises(WeightsError, match="there is no"):  # all is named, and nothing is there
            check_weights(asked.metrics, asked.weights)
        for name in {"hpsv2", "hpsv2.1"} & {*asked.weights}:
            assert Path(asked.weights[name]).name in PLACES[name][0]


def test_what_is_missing_is_told_in_one_line_before_anything_is_built(tmp_path):
    began = time.monotonic()
    for metric, names in METRICS.items():
        with pytest.raises(ConfigError, match=f"metric '{metric}' needs .*; give --weights {names[0]}=") as told:
            check_weights([metric], {})
        assert "\n" not in str(told.value)
        given = {name: str(tmp_path / "nowhere" / name) for name in names}
        with pytest.raises(
            WeightsError, match=f"metric '{metric}': there is no .*{tmp_path}/nowhere/{names[0]}"
        ) as told:
            check_weights([metric], given)
        assert "\n" not in str(told.value)
        if PLACES[names[0]][1]:
            with pytest.raises(WeightsError, match=f"metric '{metric}': {tmp_path} has no"):
                check_weights([metric], {**given, names[0]: str(tmp_path)})
    with pytest.raises(ConfigError, match="no weights named 'clop'; did you mean 'clip'"):
        check_weights(["clip"], {"clop": "x"})
    assert time.monotonic() - began < 1
