"""A loss of one's own: it says which tensors it takes, and where its gradient enters the tokenizer."""

from torch import Tensor

from aligntok.losses import Loss


class MyLoss(Loss):
    """Mean absolute difference between the edges of an image and of its reconstruction."""

    inputs = ("images", "reconstruction")  # names from aligntok.losses.TENSORS, in the order of forward
    at = "reconstruction"

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W) in [-1, 1]
        error = (reconstruction - images).float()
        return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
