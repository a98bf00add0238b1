"""What the VAE baselines share: LDM's losses as VA-VAE sums them, the optimiser, ImageNet in batches of 256.

Convention: all of it, from the published VA-VAE code; the paper states batch, epochs and the KL term's weight.
That code sums L1 and LPIPS over the numbers of an image (3 x 256 x 256) where ours are means. The factor below makes
them those sums, so that the KL term's 1e-6 and the bounds of the ratios mean what they mean there.
"""

_base_ = ["./tokenizer_f16.py", "./losses.py", "./imagenet_256.py", "./runtime.py"]

numbers = 3 * 256 * 256
model = dict(variational=True)  # the posterior is sampled in training
losses = dict(
    l1=dict(weight=numbers),
    lpips=dict(weight=numbers),
    # Counted over the run: a later part has it from its first step.
    gan=dict(start_step=5_000, adaptive_weight=dict(max=1e4)),
    kl=dict(type="kl", weight=1e-6),
)
del numbers

optimizer = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
discriminator_optimizer = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
global_batch_size = 256
