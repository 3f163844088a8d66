"""What does segmenting a volume cost: time of the processor, memory, and Dice, beside MONAI's windows in float32?

Volumes of 160 voxels cubed by the `base` network on one core, with windows of 96 cubed that overlap by a quarter and
Gaussian weights. Each way is a process of its own, in turn, over and over; a ratio is the median over repeats of CPU
time (all threads) by MONAI over that by fedseg just after. Not wall time: other programs that take turns don't count;
with a GPU it is the wall's. Peak memory is what a process held at most beyond network and volume. Dice is the mean over
tissues and volumes against the labels. Prints one JSON line.

    OMP_NUM_THREADS=1 python benchmarks/inference.py --model MODEL [--data BIDS_DIR]

- monai: `sliding_window_inference` in float32, and the softmax
- windows: what fedseg runs, bf16 where the processor has it
- one_pass: with `--one-pass`

Without --data the volumes are made-up brains; without --model the network knows nothing and its Dice says nothing.
A scan that is larger than the cube is cut about its middle, a smaller one padded with background.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers.utils import sliding_window_inference

from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import prepare_case
from fedseg.imaging.nifti import Volume
from fedseg.imaging.synthesis import NEUROTYPICAL, make_subject
from fedseg.imaging.synthesis_contrast import style_of_site
from fedseg.imaging.transforms import Prepared, prepare
from fedseg.labels import FETA
from fedseg.runtime.prediction import load_network
from fedseg.training.compute import native_bf16
from fedseg.training.inference import Predictor
from fedseg.training.memory import keep_freed_memory
from fedseg.training.network import SegmentationNet, build_network
from fedseg.training.validation import tissue_dice

SPACING_MM = 0.8
WEEKS = (30.0, 34.0, 38.0)
MEGABYTE = 1e6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Segment = Callable[[Image], Probabilities]
Shape = tuple[int, int, int]


def network(path: Path | None) -> tuple[SegmentationNet, float]:
    """A trained network, or one that knows nothing, and its voxel size."""
    if path is None:
        return build_network("base", FETA.classes, 0).to(DEVICE).eval(), SPACING_MM
    model, card = load_network(path)
    if model.preset != "base" or card.task != FETA.name:
        sys.exit(f"{path} is no model of the tissues with the network base")
    return model, card.spacing_mm


def volumes(data: Path | None, spacing_mm: float, side: int) -> list[tuple[Image, Labels]]:
    """Cubes with their labels."""
    if data is None:
        found = [made_up(weeks, spacing_mm) for weeks in WEEKS]
    else:
        dataset = load_dataset(data, scheme=FETA)
        cases = [case for case in dataset.cases if (case.gestational_age_weeks or 0) >= min(WEEKS)][: len(WEEKS)]
        found = [prepare_case(dataset, case, spacing_mm=spacing_mm) for case in cases]
    return [(cube(each.image, side), cube(of(each), side)) for each in found]


def made_up(weeks: float, spacing_mm: float) -> Prepared:
    """A made-up brain, prepared."""
    rng = np.random.default_rng(int(weeks))
    image, labels, affine = make_subject(
        rng, weeks=weeks, pathology=NEUROTYPICAL, style=style_of_site(0), spacing_mm=spacing_mm
    )
    size = (spacing_mm, spacing_mm, spacing_mm)
    scan, truth = (
        Volume(array, affine, size, "made up", array.shape, 0, 2, array.dtype.name) for array in (image, labels)
    )
    return prepare(scan, truth, {index: index for index in range(FETA.classes)}, spacing_mm=spacing_mm, scheme=FETA)


def of(prepared: Prepared) -> Labels:
    """Its labels."""
    assert prepared.labels is not None  # noqa: S101  # they were asked for
    return prepared.labels


def cube(array: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """The middle of an array, with its lowest value around it where it is smaller."""
    starts = [max(0, (size - side) // 2) for size in array.shape]
    cut = array[tuple(slice(start, start + side) for start in starts)]
    gaps = [side - size for size in cut.shape]
    return np.pad(cut, [(gap // 2, gap - gap // 2) for gap in gaps], constant_values=array.min())


def by_monai(model: SegmentationNet, patch: Shape) -> Segment:
    """MONAI's windows in float32."""

    def segment(image: Image) -> Probabilities:
        batch = torch.from_numpy(image)[None, None].to(DEVICE)
        with torch.no_grad():
            logits = sliding_window_inference(batch, patch, 1, model, overlap=0.25, mode="gaussian")
            assert isinstance(logits, torch.Tensor)  # noqa: S101  # not several outputs
            return torch.softmax(logits[0], dim=0).cpu().numpy()

    return segment


def by_fedseg(model: SegmentationNet, patch: Shape, *, one_pass: bool = False) -> Segment:
    """What `fedseg predict` does between preparing a scan and bringing the result back to its grid."""
    keep_freed_memory()
    return Predictor(model, patch, one_pass=one_pass)


WAYS: dict[str, Callable[[SegmentationNet, Shape], Segment]] = {
    "monai": by_monai,
    "windows": by_fedseg,
    "one_pass": lambda model, patch: by_fedseg(model, patch, one_pass=True),
}


def clock() -> float:
    """Seconds of this process on all cores; with a GPU, of the wall once it is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def run(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds a volume, peak megabytes and Dice of one way; run in a process of its own."""
    torch.set_num_threads(asked.threads)
    model, spacing_mm = network(asked.model)
    cubes = volumes(asked.data, spacing_mm, asked.side)
    segment = WAYS[way](model, (asked.patch,) * 3)
    if DEVICE.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    found: list[Probabilities] = [segment(cubes[0][0])]
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident("VmHWM") - before
    began = clock()
    found = [segment(image) for image, _ in cubes]
    seconds = (clock() - began) / len(cubes)
    labels = [each.argmax(axis=0).astype(np.uint8) for each in found]
    dice = statistics.mean(
        tissue_dice(mine, truth, FETA.classes) for mine, (_, truth) in zip(labels, cubes, strict=True)
    )
    said: dict[str, Any] = {"seconds": seconds, "peak_mb": peak / MEGABYTE, "dice": dice}
    if isinstance(segment, Predictor):
        said["way"] = asdict(segment.way((asked.side,) * 3))
    return said


def resident(name: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024


def alone(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """`run` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        said = pool.submit(run, way, asked).result()
    print(f"{way}: {said['seconds']:.2f} s, {said['peak_mb']:.0f} MB, {said['dice']:.4f}", file=sys.stderr, flush=True)
    return said


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and each way beside MONAI."""
    line: dict[str, Any] = {}
    for way, each in found.items():
        line[way] = {
            key: round(statistics.median(one[key] for one in each), 4) for key in ("seconds", "peak_mb", "dice")
        }
        if way != "monai":
            pairs = zip(found["monai"], each, strict=True)
            line[way]["monai_over_this"] = round(
                statistics.median(base["seconds"] / one["seconds"] for base, one in pairs), 2
            )
            line[way]["dice_change"] = round(line[way]["dice"] - line["monai"]["dice"], 4)
            line[way]["predicted_mb"] = round(each[0]["way"]["needs_bytes"] / MEGABYTE)
            line[way]["passes"] = each[0]["way"]["passes"]
    return line


def processor() -> dict[str, Any]:
    """What the figures depend on."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "device": DEVICE.type,
        "cores": os.cpu_count(),
        "amx": bool(capabilities.get("amx_bf16")),
        "bf16": native_bf16(DEVICE),
        "torch": torch.__version__,
    }


def main(ways: Sequence[str] = tuple(WAYS)) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a model file of the network base")
    parser.add_argument("--data", type=Path, help="a BIDS folder with labels; else made-up brains")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(asked.repeats):
        for way in ways:
            found[way].append(alone(way, asked))
    told = {name: getattr(asked, name) for name in ("side", "patch", "repeats", "threads")}
    about = {"trained": asked.model is not None, "volumes": "made up" if asked.data is None else "real scans"}
    print(json.dumps({"benchmark": "inference", **processor(), **told, **about, **summary(found)}), flush=True)


if __name__ == "__main__":
    main()
