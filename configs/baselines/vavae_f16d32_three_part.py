"""VA-VAE, CNN encoder, f16d32, ImageNet 256, in three parts: the published model, the paper's baseline (Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vavae_f16d32_three_part.py --cfg-options data_root=...

Alignment weight 0.5 without margins, then 0.1, then 0.1 with margins 0.25 and 0.5. Each part goes on with the weights
of the one before; optimisers begin anew.
Paper: the published checkpoint, of 125 epochs in batches of 256; 2,966 A100 hours (Table 6), hardware and time not
stated otherwise. Here, as its authors describe it, 500K + 75K + 75K steps of 256 images = 100 + 15 + 15 epochs, 166.4 M
images seen.
Expected (paper): rFID 0.28, PSNR 26.31, LPIPS 0.104, linear probe 22.96 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["vavae_f16d32.py"]

stages = [
    dict(
        name="strong",
        steps=500_000,
        losses=dict(vf=dict(weight=0.5, distance_margin=0.0, cosine_margin=0.0)),
    ),
    dict(
        name="weak",
        steps=75_000,
        init_from=dict(stage="strong", weights="raw"),
        losses=dict(vf=dict(distance_margin=0.0, cosine_margin=0.0), gan=dict(start_step=0)),
    ),
    dict(
        name="margins",
        steps=75_000,
        init_from=dict(stage="weak", weights="raw"),
        losses=dict(gan=dict(start_step=0)),
    ),
]
