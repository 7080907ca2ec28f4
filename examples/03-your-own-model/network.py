"""A network of your own: any module that torch.fx can trace."""

from torch import Tensor, nn


class Network(nn.Module):
    """Three convolutions and a classifier for 20x20 maps of any number of channels."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.body(x).mean((2, 3)))
