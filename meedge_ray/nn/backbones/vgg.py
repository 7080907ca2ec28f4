"""VGG-16 (Simonyan and Zisserman 2015, configuration D) with batch normalization, for 32x32 images."""

from torch import Tensor, nn

_STAGES = (
    (64, 2),
    (128, 2),
    (256, 3),
    (512, 3),
    (512, 3),
)  # width and convolutions of each, a halving at the end


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and three FC layers, for images of at least 32x32; 15.3 million parameters (61 MB).

    The FC layers are 512 wide, as is usual where 32x32 images leave a 1x1 map before them.
    """

    minimum_side = 32

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for stage_width, depth in _STAGES:
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, stage_width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage_width),
                    nn.ReLU(),
                ]
                channels = stage_width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * (height // 32) * (width // 32), 512),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(512, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
