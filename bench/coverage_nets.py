"""Eleven small networks with every second prunable channel zeroed, so that the right answer is known.

Each network is built at full width with random weights and random BatchNormalization statistics, half of the channels
of every prunable group are zeroed (weights, biases, scale and shift), and the network is exported to ONNX. Removing
those channels is exact, so a tool that understands the topology reaches the size of the same network built at half
width, and the output does not change. A build fails if the half-width network does not answer the same (1e-4 relative).

Variants, one folder each:
  raw          TorchScript exporter, BatchNormalization nodes kept
  folded       TorchScript exporter, the BatchNormalizations that can be are folded into their Conv
  dynamo       torch.export based exporter with its default options
  dynamo_raw   the same with optimize=False: the Conv bias is an Expand of a CastLike

`ideal.json` holds, per network and variant, the float weights of the file and of the half-width network exported the
same way. `vit` keeps its residual width: only half of the heads and of the hidden neurons go. In `shufflenet` both
halves of a shuffle lose the same channels, so that a smaller Reshape is enough. Input: `x`, float32, 1x3x32x32;
output: `y`.

    python bench/coverage_nets.py --out DIR                 # everything: 44 files, needs torch and onnxscript
    python bench/coverage_nets.py --out DIR --only vit      # one network
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import pathlib
import warnings
from unittest import mock

import onnx
import torch
from _common import count_weights
from _coverage_blocks import NETS, ShuffleUnit
from torch import nn
from torch.nn import functional

VARIANTS = ("raw", "folded", "dynamo", "dynamo_raw")
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)


def randomize(net, seed=0):
    """Random weights and BatchNorm statistics far from the identity."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                fan = m.weight[0].numel() if not isinstance(m, nn.ConvTranspose2d) else m.weight.shape[0]
                m.weight.normal_(0, (2.0 / fan) ** 0.5, generator=g)
                if m.bias is not None:
                    m.bias.normal_(0, 0.1, generator=g)
            elif isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)):
                m.weight.uniform_(0.6, 1.4, generator=g)
                m.bias.normal_(0, 0.2, generator=g)
                if isinstance(m, nn.BatchNorm2d):
                    m.running_mean.normal_(0, 0.2, generator=g)
                    m.running_var.uniform_(0.5, 1.5, generator=g)
        for p in (getattr(net, n, None) for n in ("cls", "pos")):
            if p is not None:
                p.normal_(0, 0.2, generator=g)
    return net.eval()


def _channels_in(m, x):
    """Mask of the input channels of layer `m` that are not identically zero."""
    axis = x.dim() - 1 if isinstance(m, nn.Linear) else 1
    return x.detach().abs().amax([i for i in range(x.dim()) if i != axis]) > 0


def _is_depthwise(m):
    return isinstance(m, nn.Conv2d) and m.groups == m.in_channels == m.out_channels and m.groups > 1


def zero_half(net):
    """Zero every second prunable channel in place.

    Returns {layer name: (kept input mask, kept output mask)}.  One forward pass
    in execution order: a depthwise Conv and a BatchNorm follow their input, any
    other layer loses its odd outputs unless it is listed in `net.keep`.
    """
    keep = getattr(net, "keep", ("head", "heads"))
    masks, hooks, identity = {}, [], {}

    def shuffle_hook(name):
        def run(m, args):
            identity[name] = _channels_in(m, args[0].chunk(2, 1)[0])

        return run

    def hook(name, m):
        def run(_, args):
            kin = _channels_in(m, args[0])
            with torch.no_grad():
                if isinstance(m, nn.BatchNorm2d) or _is_depthwise(m):
                    kout = kin
                else:
                    axis = 1 if isinstance(m, nn.ConvTranspose2d) else 0
                    n = m.weight.shape[axis]
                    kout = torch.ones(n, dtype=torch.bool)
                    if name.endswith("qkv"):
                        hd = dict(net.named_modules())[name.rpartition(".")[0]].hd
                        kout.view(3, -1, hd)[:, 1::2] = False
                    elif name.endswith(".b2.2.0") and name[:-7] in identity:
                        kout = identity[name[:-7]]  # both halves of a shuffle lose the same channels
                    elif not any(part in keep for part in name.split(".")):
                        kout[1::2] = False
                w = m.weight.transpose(0, 1) if isinstance(m, nn.ConvTranspose2d) else m.weight
                w[~kout] = 0
                if m.bias is not None:
                    m.bias[~kout] = 0
            masks[name] = (kin, kout)

        return m.register_forward_pre_hook(run)

    for name, m in net.named_modules():
        if isinstance(m, LAYERS):
            hooks.append(hook(name, m))
        elif isinstance(m, ShuffleUnit) and m.s == 1:
            hooks.append(m.register_forward_pre_hook(shuffle_hook(name)))
    # A leaky ReLU for the probe, so that a channel which happens to be dead on
    # the probe input is not mistaken for a zeroed one.
    with (
        torch.no_grad(),
        mock.patch.object(functional, "relu", functional.leaky_relu),
        mock.patch.object(functional, "hardtanh", lambda x, *a: functional.leaky_relu(x)),
    ):
        net(torch.randn(16, 3, net.size, net.size, generator=torch.Generator().manual_seed(9)) + 0.3)
    for h in hooks:
        h.remove()
    return masks


def shrink(net, half, masks):
    """Copy the kept slices of `net` into `half`, the same class at half width."""
    big, small = dict(net.named_modules()), dict(half.named_modules())
    done = set()
    with torch.no_grad():
        for name, (kin, kout) in masks.items():
            m, s = big[name], small[name]
            for key in ("weight", "bias", "running_mean", "running_var"):
                t = getattr(m, key, None)
                if t is None:
                    continue
                if key != "weight" or isinstance(m, nn.BatchNorm2d):
                    t = t[kout]
                elif isinstance(m, nn.ConvTranspose2d):
                    t = t[kin][:, kout]
                elif isinstance(m, nn.Conv2d) and m.groups > 1:
                    t = t[kout] if _is_depthwise(m) else t[kout][:, kin.view(m.groups, -1)[0]]
                else:
                    t = t[kout][:, kin]
                getattr(s, key).copy_(t)
                done.add(f"{name}.{key}")
        for key, t in net.state_dict().items():
            if key not in done and "num_batches" not in key:
                half.state_dict()[key].copy_(t)
    return half.eval()


def build(name, seed=0):
    """A zeroed full-width net and the half-width net that answers the same."""
    cls = NETS[name]
    net = randomize(cls(lambda c: c), seed)
    masks = zero_half(net)
    half = shrink(net, cls(lambda c: c // 2), masks)
    x = torch.randn(2, 3, cls.size, cls.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = net(x), half(x)
    err = float((a - b).abs().max() / a.abs().max())
    if err > 1e-4:
        raise AssertionError(f"{name}: half-width net differs by {err}")
    return net, half


def export(net, path, variant):
    x = torch.randn(1, 3, net.size, net.size, generator=torch.Generator().manual_seed(2))
    names = {"input_names": ["x"], "output_names": ["y"]}
    sink = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        if variant.startswith("dynamo"):
            torch.onnx.export(
                net, (x,), str(path), dynamo=True, optimize=variant == "dynamo", external_data=False, **names
            )
        else:
            mode = torch.onnx.TrainingMode.PRESERVE if variant == "raw" else torch.onnx.TrainingMode.EVAL
            torch.onnx.export(
                net,
                (x,),
                str(path),
                dynamo=False,
                opset_version=17,
                training=mode,
                do_constant_folding=variant != "raw",
                **names,
            )
    model = onnx.load(str(path))
    for item in [
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ]:
        item.doc_string = ""  # stack traces name the exporting machine's files
        del item.metadata_props[:]
    onnx.save(model, str(path))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default=".", type=pathlib.Path)
    ap.add_argument("--only", nargs="*", default=list(NETS))
    ap.add_argument("--variants", nargs="*", default=list(VARIANTS))
    args = ap.parse_args()
    facts_path = args.out / "ideal.json"
    facts = json.loads(facts_path.read_text()) if facts_path.exists() else {}
    for name in args.only:
        net, half = build(name)
        entry = facts.setdefault(name, {})
        entry["torch"] = {
            "params": sum(p.numel() for p in net.parameters()),
            "ideal_params": sum(p.numel() for p in half.parameters()),
        }
        for variant in args.variants:
            folder = args.out / variant
            folder.mkdir(parents=True, exist_ok=True)
            tmp = folder / f".{name}.half.onnx"
            export(net, folder / f"{name}.onnx", variant)
            export(half, tmp, variant)
            entry[variant] = {
                "params": count_weights(str(folder / f"{name}.onnx")),
                "ideal_params": count_weights(str(tmp)),
            }
            tmp.unlink()
        for e in entry.values():
            e["ideal_pct"] = round(100 * e["ideal_params"] / e["params"], 2)
        print(name, json.dumps(entry), flush=True)
        facts_path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
