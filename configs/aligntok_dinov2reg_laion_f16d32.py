"""AlignTok, DINOv2-L/14 with registers, f16d32, LAION at varying aspect ratios, short side 256 (paper, App. A).

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/aligntok_dinov2reg_laion_f16d32.py \
        --cfg-options data_root=...

From an index of LAION's shards (docs/streaming.md), wherever they lie, in place of data_root:

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/aligntok_dinov2reg_laion_f16d32.py \
        --cfg-options data.train.type=stream data.train.index=/path/to/index data.train.where=laion

Paper: 30 + 20 + 5 h on 32 H100 (300K + 100K + 50K steps of 256 images, 115.2 M images seen = 0.19 epochs of the
616 M filtered images). Expected (paper): rFID 0.443 on COYO images. Not yet run here at this size.
One weight is "set to 3" in the paper, its symbol lost: read here as the semantic weight (our choice).
"""

_base_ = ["_base_/tokenizer_f16.py", "_base_/stages_imagenet.py", "_base_/runtime.py"]

model = dict(encoder=dict(type="dinov2", registers=True))

global_batch_size = 256
data = dict(
    # Batches of one shape each: the image is cropped to the nearest of these (H, W), all of short side 256.
    train=dict(
        type="images",
        image_size=[(256, 256), (256, 320), (320, 256), (256, 384), (384, 256), (256, 448), (448, 256)],
    ),
    val=None,
    nominal_images=616_000_000,
    workers=8,
)

stages = _base_.stages
for stage, steps in zip(stages, (300_000, 100_000, 50_000), strict=True):
    stage["steps"] = steps
    stage["optimizer"] = dict(lr=1e-4)
    stage["discriminator_optimizer"] = dict(lr=1e-4)
stages[1]["losses"]["semantic"]["weight"] = 3.0
del stage, steps
