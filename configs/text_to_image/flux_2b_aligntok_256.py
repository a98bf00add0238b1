"""FLUX-style transformer, 1,965.93 M, on AlignTok f16d32 (LAION recipe), 256 pixels at varying aspect ratios (App. A).

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/text_to_image/flux_2b_aligntok_256.py \
        --cfg-options data_root=/path/to/captioned/images

Paper: 140 h on 32 H100 (200K steps of 2,048 images, 409.6 M images seen = 0.66 epochs of the 616 M images). It gives
the size as "2B" alone: 2,048 wide, 7 double and 14 single blocks, 16 heads, are our choice (FLUX has 1 : 2).
Expected (paper, COCO captions, after 100K of these 200K steps, as the text around Table 5 reads): gFID 30.27, KID
0.015, HPSv2 0.249, GenEval 0.556. configs/text_to_image/flux_2b_aligntok_512.py goes on. Not yet run here.
"""

_base_ = ["../_base_/text_to_image.py"]

tokenizer = "work_dirs/aligntok_dinov2reg_laion_f16d32"
generator = dict(in_channels=32, hidden_size=2048, num_heads=16, depth=7, depth_single_blocks=14)
steps = 200_000
global_batch_size = 2048
