"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B)."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling, for images of at least 16x16; made for 28x28 and 32x32."""

    minimum_side = 16

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * _reduced(height) * _reduced(width), 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x))).flatten(1)
        x = self.relu(self.fc1(x))
        logits: Tensor = self.fc3(self.relu(self.fc2(x)))
        return logits


def _reduced(side: int) -> int:
    """Side of the map after twice a 5x5 convolution without padding and a halving."""
    return ((side - 4) // 2 - 4) // 2
