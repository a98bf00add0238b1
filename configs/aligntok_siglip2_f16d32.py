"""AlignTok, SigLIP 2-L/16, f16d32, ImageNet 256 (paper, Tables 2 and 9): another encoder, stages 1 and 2.

    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_siglip2_f16d32.py --cfg-options data_root=...

Paper: 8 H100, no time stated (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen; no stage 3).
Expected (paper): rFID 0.35, PSNR 25.29, LPIPS 0.129. Not yet run here at this size. The paper sets another semantic
weight for this encoder, whose value is lost in the text at hand: stages.1.losses.semantic.weight is left at 1.
"""

_base_ = ["aligntok_dinov2_f16d32.py"]

model = dict(encoder=dict(_delete_=True, type="siglip2"))

stages = _base_.stages[:2]
