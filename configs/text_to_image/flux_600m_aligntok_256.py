"""A FLUX-style transformer of 563.59 M on AlignTok f16d32, 256 pixels: minFM's smallest shape, for one machine.

    torchrun --nproc_per_node=8 tools/train.py configs/text_to_image/flux_600m_aligntok_256.py \
        --cfg-options data_root=/path/to/captioned/images

Our own recipe: 100K steps of 512 images, 51.2 M images seen, 0.08 epochs of the 616 M images.
Expected (measured): not yet run here at this size; docs/text_to_image.md has what was run.
"""

_base_ = ["../_base_/text_to_image.py"]

tokenizer = "work_dirs/aligntok_dinov2reg_laion_f16d32"
generator = dict(in_channels=32, hidden_size=1024, num_heads=16, depth=8, depth_single_blocks=16)
parallel = "replicate"
steps = 100_000
global_batch_size = 512
