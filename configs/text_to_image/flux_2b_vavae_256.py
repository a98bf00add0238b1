"""The 2B generator on VA-VAE f16d32 (published weights), 256 pixels: the paper's second baseline.

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/text_to_image/flux_2b_vavae_256.py \
        --cfg-options data_root=/path/to/captioned/images tokenizer=/path/to/vavae-imagenet256-f16d32-dinov2.pt

As flux_2b_aligntok_256 but for the latents. Paper: 140 h on 32 H100 for its own (200K steps of 2,048 images, 409.6 M
images seen = 0.66 epochs of the 616 M images), this one's time not stated. It compares with an AlignTok tokenizer that
it does not define.
Expected (paper, COCO captions, Tables 14 and 15, which do not say after how many steps and at which size): gFID 34.13,
KID 0.016, HPSv2 0.221, GenEval 0.411, where that AlignTok tokenizer has gFID 31.19.
configs/text_to_image/flux_2b_vavae_512.py goes on. Not yet run here.
"""

_base_ = ["flux_2b_aligntok_256.py"]

tokenizer = "work_dirs/vavae_f16d32"
data = dict(posterior="sample")
