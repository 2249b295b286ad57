"""torchvision's vision transformer at a size that suits the digits.

lpss train --arch examples/vision_transformer.py:tiny
lpss sparsify model.pt --arch examples/vision_transformer.py:tiny --sparsity 0.8
"""

from torch import Tensor, nn
from torchvision.models import VisionTransformer


class Digits(nn.Module):
    """Passes grayscale digits to a network for color images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, classes)."""
        out: Tensor = self.network(x.expand(-1, 3, -1, -1))
        return out


def tiny(num_classes: int) -> nn.Module:
    """Return a transformer with 16 patches, 3 layers, and 4 heads."""
    return Digits(
        VisionTransformer(
            image_size=8,
            patch_size=2,
            num_layers=3,
            num_heads=4,
            hidden_dim=64,
            mlp_dim=128,
            num_classes=num_classes,
        )
    )
