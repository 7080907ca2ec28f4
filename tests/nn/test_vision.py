import subprocess
import sys

import torch


def test_models_data_sets_and_transforms_work():
    from meedge_ray.nn.vision import torchvision

    assert callable(torchvision.models.resnet18)
    assert callable(torchvision.datasets.CIFAR10)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert torchvision.transforms.v2.functional.resize(image, [4, 4]).shape == (3, 4, 4)


def test_only_its_users_pay_for_torchvision():
    code = (
        "import sys; import meedge_ray.nn.backbones, meedge_ray.nn.source, meedge_ray.nn.partition,"
        " meedge_ray.nn.export, meedge_ray.nn.branches; print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
