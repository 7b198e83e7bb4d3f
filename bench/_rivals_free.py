"""Other tools on a classifier without training it again; run by `rivals.py` in an interpreter that has them.

onnxsim_refit         onnxsim: structured pruning by weights and activations (`apply_structured_wanda_pruning`), then
                      its refit against the original's activations (`apply_pruning_finetune`), on the given images
onnxsim_norm_refit    the same with channels chosen by the L2 norm of their weights (`apply_structured_pruning`)
torch_pruning_resnet  Torch-Pruning on the ResNet (CIFAR form, shortcuts without weights) as a PyTorch module with the
                      file's weights: L2 magnitude, the streams left whole, no fine-tuning, exported again

Options: `ratio`, the share of every group that goes, and `calibration`, an .npz with prepared inputs by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BATCH = 32


def onnxsim_refit(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Prune by weights times activations, then refit."""
    import onnxsim

    def prune(model: Any, batches: list[dict[str, Any]]) -> Any:
        return onnxsim.apply_structured_wanda_pruning(model, calibration_data=batches, sparsity=float(options["ratio"]))

    return _refitted(source, target, options, prune)


def onnxsim_norm_refit(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Prune by weights, then refit."""
    import onnxsim

    return _refitted(
        source, target, options, lambda model, _: onnxsim.apply_structured_pruning(model, sparsity=options["ratio"])
    )


def _refitted(source: str, target: str, options: Mapping[str, Any], prune: Any) -> dict[str, Any]:
    import numpy as np
    import onnx
    import onnxsim

    with np.load(options["calibration"]) as found:
        ((name, x),) = found.items()
    batches = [{name: x[at : at + BATCH]} for at in range(0, len(x), BATCH)]
    model, checked = onnxsim.simplify(onnx.load(source))
    onnx.save(onnxsim.apply_pruning_finetune(model, prune(model, batches), calibration_data=batches), target)
    return {"checked": bool(checked)}


def torch_pruning_resnet(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Prune what is inside the blocks."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch
    import torch_pruning as tp
    from onnx import numpy_helper
    from torch import nn

    model = onnx.load(source)
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}

    class Block(nn.Module):
        def __init__(self, into: int, out: int, step: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(into, out, 3, step, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.step, self.more = step, out - into

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.step > 1 or self.more:
                side = self.more // 2
                x = nn.functional.pad(x[:, :, :: self.step, :: self.step], (0, 0, 0, 0, side, side))
            return torch.relu(x + y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            into = weights["conv1.weight"].shape[0]
            self.conv1, self.bn1 = nn.Conv2d(3, into, 3, 1, 1, bias=False), nn.BatchNorm2d(into)
            for stage in (1, 2, 3):
                count = len({n.split(".")[1] for n in weights if n.startswith(f"layer{stage}.")})
                out, blocks = weights[f"layer{stage}.0.conv1.weight"].shape[0], []
                for number in range(count):
                    blocks.append(Block(into, out, 2 if stage > 1 and number == 0 else 1))
                    into = out
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            self.linear = nn.Linear(into, weights["linear.weight"].shape[0])

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(self.conv1(image)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    net = Net().eval()
    missing = net.load_state_dict(
        {k: v for k, v in weights.items() if k in net.state_dict()}, strict=False
    ).missing_keys
    if wrong := [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise ValueError(f"the file lacks {wrong[0]}")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    name = model.graph.input[0].name
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        gap = np.abs(session.run(None, {name: x.numpy()})[0] - net(x).numpy()).max()
    if gap > 1e-3:
        raise ValueError(f"the module answers otherwise than the file: {gap:.1e}")
    kept = [m for n, m in net.named_modules() if n in ("conv1", "linear") or n.endswith(".conv2")]
    pruner = tp.pruner.BasePruner(
        net,
        x[:1],
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=float(options["ratio"]),
        ignored_layers=kept,
    )
    pruner.step()
    torch.onnx.export(
        net,
        (x[:1],),
        target,
        input_names=[name],
        output_names=[model.graph.output[0].name],
        dynamic_axes={name: {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return {"left": sum(p.numel() for p in net.parameters())}
