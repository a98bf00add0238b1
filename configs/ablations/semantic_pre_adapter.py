"""AlignTok ablation: semantic preservation of the encoder's output, before the adapter (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/semantic_pre_adapter.py --cfg-options data_root=...

The loss leaves the adapter free. The paper gives no weight for this variant: 1, as in the default recipe.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.34, PSNR 25.78, LPIPS 0.118, linear probe 15.61 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.83, IS 226.9, precision 0.835, recall 0.553. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["on"] = "features"
