"""AlignTok ablation: semantic preservation by cosine similarity instead of L2 (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/semantic_cosine.py --cfg-options data_root=...

The paper gives neither formula nor weight of this variant: here 1 - cos over channels,
its mean over positions, at weight 1.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.37, PSNR 25.23, LPIPS 0.129, linear probe 37.99 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.23, IS 248.6, precision 0.819, recall 0.585. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["distance"] = "cosine"
