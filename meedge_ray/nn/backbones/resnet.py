"""ResNet of depth 6n + 2 for small images (He et al. 2015, "Deep residual learning", section 4.2, option A)."""

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided slicing, new channels zero."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.changes_shape = stride != 1 or in_planes != planes
        self.padding = (0, 0, 0, 0, planes // 4, planes // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_planes, H, W] to [N, planes, H / stride, W / stride]."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(x[:, :, ::2, ::2], self.padding) if self.changes_shape else x
        return functional.relu(residual + shortcut)


class ResNet(nn.Module):
    """Three stages of n basic blocks, 16, 32 and 64 channels wide, for images of any size."""

    minimum_side = 1

    def __init__(self, depth: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))
