"""AlignTok, DINOv2-L/14, f16d32, ImageNet 256: LoRA in stage 2 instead of training the whole encoder (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/lora.py --cfg-options data_root=...

Paper: rank 16, alpha 32, dropout 0.1 on attention and MLP layers; no third stage. Learning rate, steps, hardware and
time not stated for this variant: here they are those of stages 1 and 2, 120K + 220K steps of 64 images = 6 + 11
epochs, 21.8 M images seen.
Expected (paper): rFID 1.35, PSNR 26.18, LPIPS 0.121, linear probe 18.56 %. Not yet run here at this size.
"""

_base_ = ["../aligntok_dinov2_f16d32.py"]

stages = _base_.stages[:2]
stages[1]["lora"] = dict(rank=16, alpha=32, dropout=0.1)
