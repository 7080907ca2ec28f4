import pytest
import torch
from torch import nn
from torch.nn import functional

from meedge_ray.api.elastic_model import FullyConnected
from meedge_ray.nn.branches import build_head
from meedge_ray.nn.kernels import convolve, pools


def both_ways(run, x, weights, gradient):
    x = x.clone().requires_grad_()
    y = run(x)
    return y, torch.autograd.grad(y, [x, *weights], gradient)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("sides", [(16, 16), (14, 18), (13, 15), (5, 6), (2, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_a_depthwise_convolution_has_the_gradients_of_pytorch_s(k, dilation, sides, memory_format):
    torch.manual_seed(k)
    x = torch.randn(3, 4, *sides).to(memory_format=memory_format)
    gradient = torch.randn_like(x)
    plain = nn.Conv2d(4, 4, k, padding=k // 2 * dilation, dilation=dilation, groups=4, bias=False)
    ours = both_ways(lambda x: convolve(plain, x), x, [plain.weight], gradient)
    exact = plain.double()
    theirs = both_ways(exact, x.double(), [exact.weight], gradient.double())
    assert torch.allclose(ours[0].double(), theirs[0], atol=1e-5)
    for mine, true in zip(ours[1], theirs[1], strict=True):
        assert torch.allclose(mine.double(), true, atol=1e-4)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, (5, 1), padding=(2, 0), groups=4),
        nn.Conv2d(4, 4, (1, 5), padding=(0, 2), groups=4),
    ],
)
def test_any_other_convolution_is_pytorch_s_own(convolution):
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(convolve(convolution, x), convolution(x))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("sides", [(16, 16), (8, 12), (7, 7), (6, 9), (4, 4)])
@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 2, 4), (3, 4, 2), (1, 3)])
def test_pooling_is_what_every_head_alone_would_pool(sizes, sides, relu):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *sides).to(memory_format=torch.channels_last)
    gradients = {size: torch.randn(3, 5, size, size) for size in sizes}

    def ours(x):
        pooled = pools(x, sizes, relu=relu)
        return sum((pooled[size] * gradients[size]).sum() for size in sizes)

    def alone(x):
        active = functional.relu(x) if relu else x
        heads = {size: build_head(FullyConnected(pooledSize=size), (5, *sides), 2) for size in sizes}
        return sum((heads[size][:-1](active) * gradients[size].flatten(1)).sum() for size in sizes)

    mine, true = both_ways(ours, x, [], None), both_ways(alone, x, [], None)
    assert mine[0].item() == pytest.approx(true[0].item(), abs=1e-4)
    assert torch.allclose(mine[1][0], true[1][0], atol=1e-6)
