"""What does privacy cost a training step: time of the processor, and memory?

Each engine takes the same step over the same patches of the base network: so many subjects, one at a time, K patches
each, in one precision; noise and the optimiser's move included. In one process, engine after engine, over and over;
the ratio is the median over repeats of an engine's CPU time to that of the step without privacy just before. CPU time
(all threads) rather than wall time: other programs that take turns don't count. Peak memory is that of two subjects in
a process of its own, beyond what it held before the step: the median of three. Prints one JSON line.

    OMP_NUM_THREADS=1 python benchmarks/dp_step.py [--sides 64 96] [--precisions float32 bf16] [--engines ...]

- plain: no privacy, gradients added up over subjects
- private, pooled: what fedseg runs (`training.dpsgd`), with its noise and with its share of Skellam noise
- hooks, ghost: Opacus with per-sample gradients by hooks, and with ghost clipping (two backward passes)
- vmap: per-sample gradients by torch.func

The last three clip each patch by itself, which is what they are built for, and protect patches rather than subjects;
an engine that fails is listed with its error. With a GPU times are those of the wall, synchronised, and memory is
torch's peak.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fedseg.privacy.distributed import NoiseShare
from fedseg.training.compute import autocast, native_bf16, reproducible
from fedseg.training.dpsgd import private_steps, private_sum
from fedseg.training.network import SegmentationNet, build_network

CLASSES = 8
SIGMA = 1.0
CLIP = 1.0
RATE = 1e-3
MEGABYTE = 1e6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Subject = tuple[Tensor, Tensor]
Step = Callable[[Sequence[Subject]], None]


class Network:
    """The network of one engine, in one precision, and the loss that all engines share."""

    def __init__(self, precision: str) -> None:
        """Build it."""
        self.model: SegmentationNet = build_network("base", CLASSES, seed=0).to(DEVICE).train()
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=RATE)
        self.noise = {"noise_multiplier": SIGMA, "max_grad_norm": CLIP}
        self._precision = precision

    def losses(self, model: Callable[[Tensor], Tensor], subject: Subject) -> Tensor:
        """Mean cross-entropy of each patch."""
        images, labels = subject
        with autocast(DEVICE, self._precision):
            logits = model(images)
        return cross_entropy(logits.float(), labels, reduction="none").mean((1, 2, 3))

    def subjects(self, batch: Sequence[Subject]) -> list[Callable[[], Tensor]]:
        """Each subject's loss, as `dpsgd` takes it."""
        return [functools.partial(self._mean, subject) for subject in batch]

    def _mean(self, subject: Subject) -> Tensor:
        return self.losses(self.model, subject).mean()


def plain(network: Network) -> Step:
    """No privacy."""

    def step(batch: Sequence[Subject]) -> None:
        network.sgd.zero_grad(set_to_none=True)
        for loss in network.subjects(batch):
            (loss() / len(batch)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        network.sgd.step()

    return step


def private(network: Network) -> Step:
    """Fedseg's local noise."""

    def step(batch: Sequence[Subject]) -> None:
        private_steps(
            network.model,
            network.sgd,
            network.subjects(batch),
            **network.noise,
            sampling_rate=1.0,
            public_subjects=len(batch),
            steps=1,
            entropy=os.urandom,
            on_step=lambda _: None,
            should_stop=lambda: False,
        )

    return step


def pooled(network: Network) -> Step:
    """Fedseg's distributed noise; the move is the server's."""
    size = sum(p.numel() for p in network.model.parameters())
    share = NoiseShare.of(SIGMA, CLIP, honest=2, dimension=size, sites=3, subjects=30)

    def step(batch: Sequence[Subject]) -> None:
        private_sum(
            network.model,
            network.subjects(batch),
            share=share,
            sampling_rate=1.0,
            entropy=os.urandom,
            should_stop=lambda: False,
        )

    return step


def hooks(network: Network) -> Step:
    """Opacus: one gradient a patch, from hooks."""
    model = GradSampleModule(network.model, loss_reduction="sum")
    optimizer = DPOptimizer(network.sgd, **network.noise, expected_batch_size=1)

    def step(batch: Sequence[Subject]) -> None:
        for number, subject in enumerate(batch, 1):
            optimizer.zero_grad(set_to_none=True)
            network.losses(model, subject).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.signal_skip_step(number < len(batch))
            optimizer.step()

    return step


def ghost(network: Network) -> Step:
    """Opacus: norms first, then a second backward pass of the weighted loss."""
    model = GradSampleModuleFastGradientClipping(
        network.model, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(network.sgd, **network.noise, expected_batch_size=1)

    def step(batch: Sequence[Subject]) -> None:
        for number, subject in enumerate(batch, 1):
            optimizer.zero_grad(set_to_none=True)
            losses = network.losses(model, subject)
            DPTensorFastGradientClipping(model, optimizer, losses, loss_reduction="sum").backward()
            optimizer.signal_skip_step(number < len(batch))
            optimizer.step()

    return step


def by_vmap(network: Network) -> Step:
    """torch.func: one gradient a patch, clipped and added up by hand, with torch's own noise."""
    model = network.model
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        one = (image[None], label[None])
        return network.losses(lambda images: functional_call(model, parameters, (images,)), one)[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def step(batch: Sequence[Subject]) -> None:
        sums = {name: torch.zeros_like(p) for name, p in weights.items()}
        for images, labels in batch:
            found = gradients(weights, images, labels)
            norms = torch.stack([each.flatten(1).norm(dim=1) for each in found.values()]).norm(dim=0)
            factors = (CLIP / norms).clamp(max=1.0)
            for name, each in found.items():
                sums[name] += torch.einsum("i,i...", factors, each)
        for name, p in model.named_parameters():
            p.grad = sums[name].add_(torch.randn_like(p), alpha=SIGMA * CLIP)
        network.sgd.step()

    return step


ENGINES: dict[str, Callable[[Network], Step]] = {
    "plain": plain,
    "private": private,
    "pooled": pooled,
    "hooks": hooks,
    "ghost": ghost,
    "vmap": by_vmap,
}


def patches(subjects: int, each: int, side: int) -> list[Subject]:
    """Noise, and labels of noise: time doesn't depend on what is seen."""
    generator = torch.Generator().manual_seed(0)
    shape = (each, side, side, side)
    return [
        (
            torch.randn(each, 1, side, side, side, generator=generator).to(DEVICE),
            torch.randint(CLASSES, shape, generator=generator).to(DEVICE),
        )
        for _ in range(subjects)
    ]


def clock() -> float:
    """Seconds of this process on all cores; with a GPU, of the wall once it is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def times(engines: Sequence[str], precision: str, batch: Sequence[Subject], repeats: int) -> dict[str, Any]:
    """Seconds of each repeat by engine, or the words of its failure. Each engine warms up once, with two subjects."""
    steps: dict[str, Step] = {}
    found: dict[str, Any] = {}
    for name in engines:
        try:
            steps[name] = ENGINES[name](Network(precision))
            steps[name](batch[:2])
        except Exception as error:  # whatever a library can't do is a result
            found[name] = words(error)
            steps.pop(name, None)
    for repeat in range(repeats):
        for name, step in steps.items():
            began = clock()
            step(batch)
            found.setdefault(name, []).append(clock() - began)
            print(f"{precision} {repeat + 1}/{repeats} {name}: {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def words(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def peak(engine: str, precision: str, each: int, side: int, threads: int) -> float:
    """Megabytes that two subjects' step needs beyond the network and the patches; run in a process of its own."""
    with reproducible(threads):
        batch = patches(2, each, side)
        step = ENGINES[engine](Network(precision))
        if DEVICE.type == "cuda":
            before = torch.cuda.memory_allocated()
            step(batch)
            return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = resident("VmRSS")
        step(batch)
        return (resident("VmHWM") - before) / MEGABYTE


def resident(name: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024


def peaks(engines: Sequence[str], *settings: Any) -> dict[str, float]:
    """Peak of each engine that gets through its step: the median of three processes, which allocators make differ."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(3):
        for name in engines:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[name].append(pool.submit(peak, name, *settings).result())
    return {name: statistics.median(each) for name, each in found.items()}


def row(side: int, precision: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One size in one precision."""
    engines = list(dict.fromkeys(["plain", *asked.engines]))
    with reproducible(asked.threads):
        seconds = times(engines, precision, patches(asked.subjects, asked.patches, side), asked.repeats)
    running = [name for name in engines if not isinstance(seconds[name], str)]
    memory = peaks(running, precision, asked.patches, side, asked.threads)
    line: dict[str, Any] = {"side": side, "precision": precision}
    for name in engines:
        if name not in running:
            line[name] = {"error": seconds[name]}
            continue
        ratios = [mine / base for mine, base in zip(seconds[name], seconds["plain"], strict=True)]
        line[name] = {
            "seconds": round(statistics.median(seconds[name]), 3),
            "ratio": round(statistics.median(ratios), 3),
            "least_ratio": round(min(ratios), 3),
            "most_ratio": round(max(ratios), 3),
            "peak_mb": round(memory[name], 1),
            "peak_ratio": round(memory[name] / memory["plain"], 3),
        }
    return line


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bf16"))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    precisions = asked.precisions or ["float32", *(["bf16"] if native_bf16(DEVICE) else [])]
    rows = [row(side, precision, asked) for side in asked.sides for precision in precisions]
    told = {name: getattr(asked, name) for name in ("subjects", "patches", "repeats", "threads")}
    print(json.dumps({"benchmark": "dp_step", "device": DEVICE.type, **told, "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
