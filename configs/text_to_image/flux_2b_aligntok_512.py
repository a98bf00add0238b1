"""The 2B generator on AlignTok f16d32 goes on at 512 pixels: weights, averages and optimiser (paper, App. A).

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/text_to_image/flux_2b_aligntok_512.py \
        --cfg-options data_root=/path/to/captioned/images

It begins where work_dirs/flux_2b_aligntok_256 ended; steps and warm-up are counted anew.
Paper: 135 h on 32 H100 (90K steps of 512 images, 46.1 M images seen = 0.07 epochs of the 616 M images).
Expected (paper): no number at 512 pixels, pictures alone (Figs. 6 and 21). Not yet run here.
"""

_base_ = ["flux_2b_aligntok_256.py"]

init_from = dict(folder="work_dirs/flux_2b_aligntok_256", take=["weights", "averages", "optimizer"])
data = dict(train=dict(image_size=dict(side=512)))
steps = 90_000
global_batch_size = 512
