"""A FLUX-style transformer of 106 M on AlignTok f16d32, 256 pixels, for one GPU and captions of your own.

    python tools/train.py configs/text_to_image/flux_small_aligntok_256.py \
        --cfg-options data_root=/path/to/captioned/images

Our own recipe: 100K steps of 128 images, 12.8 M images seen, 108.21 epochs of the 118,287 photographs of COCO's
training set, for which it is meant. CLIP's text encoder gives tokens and pooled prompt.
Expected (measured): not yet run here at this size; docs/text_to_image.md has what was run.
"""

_base_ = ["../_base_/text_to_image.py"]

tokenizer = "work_dirs/aligntok_dinov2_f16d32"
clip = dict(type="clip_text", path="openai/clip-vit-large-patch14")
generator = dict(
    in_channels=32,
    hidden_size=512,
    num_heads=8,
    depth=6,
    depth_single_blocks=12,
    context_in_dim=768,
    text=dict(tokens=dict(_delete_=True, **clip), pooled=clip),
)
del clip
parallel = "replicate"
steps = 100_000
global_batch_size = 128
data = dict(nominal_images=118_287)
