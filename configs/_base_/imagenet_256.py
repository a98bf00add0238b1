"""ImageNet at 256: short side to 256, random 256 crop, flip; ``data_root`` holds train/ and val/ of class folders."""

global_batch_size = 64
data = dict(
    train=dict(type="images", split="train", image_size=256, hflip=True),  # ours: the paper speaks of no flips
    val=dict(type="images", split="val", image_size=256),
    nominal_images=1_281_167,
    workers=8,
)
validation = dict(num_images=5_000, perceptual=dict(type="lpips"))
