"""LightningDiT-XL/1 with QKNorm on VA-VAE f16d32, ImageNet 256, 1M steps (paper, Table 4): the long run's baseline.

    torchrun --nproc_per_node=8 tools/cache_latents.py checkpoints/vavae-imagenet256-f16d32-dinov2.pt \
        /path/to/imagenet latents/vavae_f16d32 --split train --posterior sample
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_vavae_f16d32_800ep.py \
        --cfg-options data_root=latents/vavae_f16d32

The tokenizer is the published one, a file of hustvl/vavae-imagenet256-f16d32-dinov2 on the Hugging Face hub.
The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16.
Paper: time not stated; 80K steps take it 12 h on 8 H100 (1M steps of 1,024 images = 799 epochs, which it rounds to 800;
1,024 M images seen).
Expected (paper): gFID 2.50 without and 1.52 with guidance in 250 sampling steps (Table 4). VA-VAE's authors, without
QKNorm, report 2.17 and 1.35 (generator.use_qknorm=False). Not yet run here at this size.
"""

_base_ = ["lightningdit_xl_aligntok_f16d32_800ep.py"]

tokenizer = "checkpoints/vavae-imagenet256-f16d32-dinov2.pt"
