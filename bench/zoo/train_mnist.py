"""Train the zoo's residual digit classifier: ResNet-20 (He et al., CIFAR layout) on 28x28 MNIST.

    python bench/zoo/train_mnist.py mnist-10k.npz mnist-resnet20.onnx

The npz comes from `fetch.py --data mnist-10k`. The last 2,000 images are held out. Needs torch.
The exported graph keeps its BatchNormalization nodes. About 10 minutes on one slow core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, BATCH, HELD_OUT = 6, 64, 2000


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.skip = nn.Sequential()
        if stride != 1 or cin != cout:
            self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.skip(x))


def resnet20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    cin = 16
    for cout, stride in [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2)] + [(64, 1)] * 2:
        layers.append(Block(cin, cout, stride))
        cin = cout
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(source: Path, target: Path) -> None:
    torch.manual_seed(0)
    data = np.load(source)
    x = torch.from_numpy(data["images"]).float()[:, None] / 255
    y = torch.from_numpy(data["labels"]).long()
    train = len(x) - HELD_OUT
    model = resnet20()
    steps = EPOCHS * (train // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        order = torch.randperm(train)
        for i in range(train // BATCH):
            batch = order[i * BATCH : (i + 1) * BATCH]
            dy, dx = np.random.default_rng(epoch * 1000 + i).integers(-2, 3, 2)
            images = torch.roll(x[batch], (int(dy), int(dx)), (2, 3))
            loss = functional.cross_entropy(model(images), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            parts = [model(p).argmax(1) for p in x[train:].split(500)]
        accuracy = (torch.cat(parts) == y[train:]).float().mean().item()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}, held-out accuracy {accuracy:.4f}", flush=True)
    torch.onnx.export(
        model,
        (x[:1],),
        str(target),
        opset_version=17,
        dynamo=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
