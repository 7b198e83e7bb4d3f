"""Train the network that `onnxslim-core demo` compresses, and write it with its data.

A small convolutional network on the 1,797 UCI handwritten digits (8x8 pixels, 17 grey levels). It has what real
exports have: BatchNormalization nodes, residual Adds, a Concat, a depthwise Conv, a Flatten into a dense head. It is
trained as Network Slimming (Liu et al., 2017) proposes: an L1 penalty on the scales of the BatchNormalizations, here by
a proximal step, so that scales the network can do without become exactly zero. The slack that the demo removes is
thus put there by a published training recipe, on purpose, and the accuracy is that of a network trained this way.

    python bench/zoo/fetch.py --data digits-8x8
    python bench/train_demo.py --out onnxslim_core/demo

Needs torch. The split, the weights' start and the order of the batches are fixed by the seed; on another CPU or another
version of torch the last digits may differ. Writes digits.onnx, calibration.npz (training images, no labels) and
heldout.npz (797 images that training never saw, with labels).
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.fetch import default_folder

HELD_OUT = 797
CALIBRATION = 512
BATCH = 64


class ConvNorm(nn.Sequential):
    """Conv without bias, BatchNormalization, and Relu unless `act` is False."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, group: int = 1, act: bool = True) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=group, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), *([nn.ReLU()] if act else []))


class Residual(nn.Module):
    """Two 3x3 Convs beside the identity."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(width, middle), ConvNorm(middle, width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same shape."""
        return functional.relu(x + self.b(self.a(x)))


class Digits(nn.Module):
    """[N, 1, 8, 8] in 0..1 -> logits [N, 10]; works at 32x32 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32)
        self.first = Residual(32, 32)
        self.branch = ConvNorm(32, 32)
        self.down = nn.Sequential(ConvNorm(64, 64, 3, 2, 64), ConvNorm(64, 48, 1))
        self.second = Residual(48, 48)
        self.third = Residual(48, 48)
        self.squeeze = ConvNorm(48, 32, 1)
        self.hidden, self.head = nn.Linear(32 * 16, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)
        x = self.first(self.stem(x))
        x = self.second(self.down(torch.cat([x, self.branch(x)], 1)))
        x = self.third(functional.max_pool2d(x, 2))
        x = functional.max_pool2d(self.squeeze(x), 2)
        return self.head(functional.relu(self.hidden(torch.flatten(x, 1))))


def scales(net: nn.Module) -> list[Tensor]:
    """The scale vectors of all BatchNormalizations."""
    return [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, penalty: float, seed: int) -> None:
    """SGD with one cycle; after each step every scale is moved towards zero by rate x penalty, and stops there.

    In the last fifth the scales that are zero stay zero and nothing else is penalised.
    """
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(images) // BATCH
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * per_epoch)
    frozen: list[Tensor] = []
    for epoch in range(epochs):
        net.train()
        if epoch == epochs * 4 // 5:
            frozen = [s.detach() != 0 for s in scales(net)]
        order = torch.randperm(len(images), generator=generator)
        for i in range(per_epoch):
            batch = order[i * BATCH : (i + 1) * BATCH]
            loss = functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for index, scale in enumerate(scales(net)):
                    if frozen:
                        scale.mul_(frozen[index])
                    else:
                        scale.copy_(functional.softshrink(scale, penalty * schedule.get_last_lr()[0]))
        if epoch % 10 == 9:
            zero = sum(int((s == 0).sum()) for s in scales(net))
            print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.4f}, scales at zero {zero}", flush=True)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    net.eval()
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


def export(net: nn.Module, path: Path) -> None:
    """Write the network as PyTorch leaves it: BatchNormalization kept, nothing folded, a free batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load(str(path))
    for item in (model.graph, *model.graph.node):
        item.doc_string = ""  # the exporter writes its own source paths here
        del item.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def main() -> None:
    """Train, report, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_folder() / "data" / "digits-8x8.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--penalty", type=float, default=0.04)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the order of a sum depends on the number of threads
    data = np.load(args.data)
    order = np.random.default_rng(args.seed).permutation(len(data["labels"]))
    images = (data["images"].reshape(-1, 1, 8, 8)[order] / 16.0).astype(np.float32)
    labels = data["labels"].reshape(-1)[order].astype(np.int64)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    net = Digits()
    train(net, x[HELD_OUT:], y[HELD_OUT:], args.epochs, args.penalty, args.seed)
    for module, name in [(m, n) for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]:
        print(f"{name:16} {int((module.weight == 0).sum()):3} of {len(module.weight)} scales are zero")
    print(f"training accuracy {accuracy(net, x[HELD_OUT:], y[HELD_OUT:]):.4f}")
    print(f"held-out accuracy {accuracy(net, x[:HELD_OUT], y[:HELD_OUT]):.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    export(net, args.out / "digits.onnx")
    np.savez_compressed(args.out / "calibration.npz", image=images[HELD_OUT : HELD_OUT + CALIBRATION])
    np.savez_compressed(args.out / "heldout.npz", image=images[:HELD_OUT], label=labels[:HELD_OUT])


if __name__ == "__main__":
    main()
