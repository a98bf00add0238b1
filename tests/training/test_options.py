"""Options of a command line, put over what a config says."""

from __future__ import annotations

import pytest

from aligntok.errors import ConfigError
from aligntok.training.config import read_config

CONFIG = """
generator = dict(type="lightning_dit", patch_size=1)
ema = None
latent_cache = None
parallel = "shard"
data = dict(train=dict(type="images", image_size=[(32, 32), (32, 48)]))
hooks = [dict(type="a")]
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"generator": dict(depth=3)}, dict(generator=dict(type="lightning_dit", patch_size=1, depth=3))),
        ({"generator": dict(_delete_=True, type="x")}, dict(generator=dict(type="x"))),
        ({"ema": dict(decays=[0.9])}, dict(ema=dict(decays=[0.9]))),
        ({"parallel": dict(shard=2)}, dict(parallel=dict(shard=2))),
        (
            {"data.train.image_size": dict(side=64)},
            dict(data=dict(train=dict(type="images", image_size=dict(side=64)))),
        ),
        (
            {"data": dict(train=dict(image_size=dict(side=64)))},
            dict(data=dict(train=dict(type="images", image_size=dict(side=64)))),
        ),
        ({"latent_cache": dict(image_size=32)}, dict(latent_cache=dict(image_size=32))),
        ({"hooks.0": dict(type="b", of=dict(x=1))}, dict(hooks=[dict(type="b", of=dict(x=1))])),
        ({"transport": dict(times="uniform")}, dict(transport=dict(times="uniform"))),
    ],
)
def test_a_dict_is_merged_with_a_dict_and_replaces_all_else(tmp_path, options, expected):
    (tmp_path / "one.py").write_text(CONFIG)
    before = read_config(tmp_path / "one.py", {})
    assert read_config(tmp_path / "one.py", options) == {**before, **expected}


def test_an_option_that_leads_nowhere_is_one_clear_error(tmp_path):
    (tmp_path / "one.py").write_text(CONFIG)
    with pytest.raises(ConfigError, match="dots lead into dicts and lists that the config has"):
        read_config(tmp_path / "one.py", {"hooks.3.type": "b"})
