"""What the ImageNet generators share: LightningDiT/1 on 16 x 16 latents from a cache, its optimiser, flow and sampler.

Paper (App. A): batch 1,024, learning rate 2e-4, patch size 1, 30 Euler steps, guidance of the first three channels.
Convention: the rest of the recipe, from the published LightningDiT configs, which the paper says it follows.
Ours: when checkpoints and pictures are written, and that a step whose gradients explode is left out (spike_factor).
"""

_base_ = ["./runtime.py"]

generator = dict(type="lightning_dit", patch_size=1, input_size=16, in_channels=32, class_dropout_prob=0.1)

global_batch_size = (
    1024  # 128 a process on 8 GPUs; where memory is short, gradient_accumulation_steps=2 or grad_checkpointing=True
)
optimizer = dict(type="AdamW", lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)  # constant learning rate, no warm-up
clip_grad_norm = None  # convention: the published configs do not clip, though their code can
ema = dict(sigma_rel=[], decays=[0.9999], inference=0.9999)
precision = "bf16"
transport = dict(times="logit_normal", mean=0.0, scale=1.0, direction_weight=1.0)

# Scales and intervals are VA-VAE's, one pair for 80K steps and one for 1M: the paper's text gives none.
sampling = dict(steps=30, sampler="euler", shift=0.3, cfg_scale=10.0, cfg_interval=(0.125, 1.0), cfg_channels=3)

data = dict(train=dict(type="latents"), nominal_images=1_281_167)
