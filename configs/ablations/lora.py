"""AlignTok ablation: LoRA in stage 2 instead of training the whole encoder (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/lora.py --cfg-options data_root=...

Rank 16, alpha 32, dropout 0.1 on attention and MLP layers (paper). Learning rate and steps of this variant are not
stated, only that they may differ: here they are those of the other ablations.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 1.35, PSNR 26.18, LPIPS 0.121, linear probe 18.56 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.97, IS 243.3, precision 0.815, recall 0.557. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["lora"] = dict(rank=16, alpha=32, dropout=0.1)
