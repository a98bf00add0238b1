"""AlignTok, DINOv2-L/14, f16d32, ImageNet 256 (paper, Table 3 and App. A): the default recipe.

    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_dinov2_f16d32.py --cfg-options data_root=...

Paper: 37 h on 8 H100 (120K + 220K + 100K steps of 64 images = 6 + 11 + 5 epochs, 28.2 M images seen).
Expected (paper): rFID 0.26, PSNR 25.83, LPIPS 0.117, linear probe 35.09 %. Not yet run here at this size.
"""

_base_ = ["_base_/tokenizer_f16.py", "_base_/stages_imagenet.py", "_base_/imagenet_256.py", "_base_/runtime.py"]

model = dict(encoder=dict(type="dinov2"))
