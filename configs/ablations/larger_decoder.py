"""AlignTok ablation: a larger decoder, a ViT followed by the CNN, in both stages (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/larger_decoder.py --cfg-options data_root=...

The paper gives the decoder's total, 351 M, and its source, GigaTok. The sizes are our choice to meet it: a ViT-L, the
convolutional decoder of the default recipe on 512 channels, 350.96 M together.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.36, PSNR 26.27, LPIPS 0.121, linear probe 27.24 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.52, IS 248.3, precision 0.808, recall 0.571. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

model = dict(decoder=dict(type="vit_cnn", width=1024, depth=24, num_heads=16, mlp_ratio=4.0))
