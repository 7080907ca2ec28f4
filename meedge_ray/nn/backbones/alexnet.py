"""AlexNet (Krizhevsky et al. 2012) with kernels and strides made for 32x32 images."""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three FC layers, for images of at least 8x8; 7.5 million parameters (30 MB) at 32x32.

    The convolutions have the widths of Krizhevsky's one-column AlexNet ("One weird trick", 2014). The FC layers are
    1024 wide instead of 4096: at a thousandth of the classes they would otherwise be nine tenths of the model.
    """

    minimum_side = 8

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * (height // 8) * (width // 8), 1024),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
