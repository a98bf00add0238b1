"""What the parts of AlignTok do, in small: beside the whole, stage 1 alone, and stage 2 at semantic weights 0 and 1.

    python tools/compare.py configs/small/parts.py --cfg-options data_root=tiny_imagenet.zip

Each tokenizer sees 150,000 images and each generator 256,000, with the first seed of configs/small/comparison.py, and
measured as there. AlignTok and its grid are that one's; all take the learning rate that it chose. No claim is judged.
Expected (measured by this config, not run yet): docs/small.md.
"""

_base_ = ["comparison.py"]

tokenizers = dict(
    _delete_=True,
    aligntok="aligntok.py",
    stage_1_only="aligntok_stage_1_only.py",
    semantic_weight_0="aligntok_semantic_weight_0.py",
    semantic_weight_1="aligntok_semantic_weight_1.py",
)
criterion = None
grid = dict(
    tokenizers=dict(
        _delete_=True,
        aligntok={{_base_.grid.tokenizers.aligntok}},
        stage_1_only=dict(like="aligntok"),
        semantic_weight_0=dict(like="aligntok"),
        semantic_weight_1=dict(like="aligntok"),
    )
)
seeds = [0]
