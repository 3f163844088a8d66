"""Made-up raw stacks: a made-up head in a made-up womb, for a network that has to find the brain in thick slices.

After SynthStrip (Hoopes et al. 2022, NeuroImage 260:119474): what is around the brain is drawn far more widely than it
is. The mother, the placenta and the fetus's body are random shapes of random greys, in two sizes; scalp, skull,
amniotic fluid and balls of fluid or tissue are where and as bright as T2-weighted scans have them. Slices are thick,
shift against each other and differ in brightness; a quarter of the stacks show no brain.

`draw_stack` takes the numbers that describe a stack, `generate_stack` computes; shapes and fields are functions of the
stack's seed. Intensities are relative to bright fluid, which is about 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging import generation, resampling
from fedseg.imaging.generation import Labels, Recipe, Row, draw_recipe
from fedseg.imaging.synthesis_anatomy import EXTERNAL_CSF
from fedseg.imaging.synthesis_fields import Field

NO_BRAIN_CHANCE = 0.25
MOTION_CHANCE = 0.6
BODY_CHANCE = 0.95
OUTLINE_CHANCE = 0.8
MORE_FLUID_CHANCE = 0.7

_SIDE_MM = (180.0, 330.0)
_SLAB_MM = (55.0, 110.0)
_THICKNESS_MM = (2.5, 5.0)
_MOST_BALLS = 4
_BEND_SCALE_MM = 28.0
_FLUID_REACH_MM = 4.0
_SCALP, _SKULL = 0.06, 0.2
"""Where they begin: share of a head around a voxel."""

Mask = NDArray[np.bool_]
Range = tuple[float, float]


@dataclass(frozen=True)
class Stack:
    """What describes one raw stack.

    Attributes:
        field_mm: Field of view along each axis.
        axis: The one across slices.
        thickness_mm: Of a slice.
        centre: Where the head's centre lies, as a share of each side.
        matrix: 3x3 matrix from the stack's axes to those of the label map, about the head's centre.
        bend_mm: Standard deviation of the smooth displacement along each axis.
        more_fluid: Share of a head around a voxel from which it is external fluid too, 0 for none.
        brain: Whether there is a brain in it.
        motion_mm: Standard deviation of a slice's shift along each of its axes.
        gain: Standard deviation of a slice's brightness.
        shading: Standard deviation of the logarithm of the coil shading.
        look: Greys of the tissues, noise, gamma.
        seed: What shapes, fields and noise are a function of.
    """

    field_mm: Row
    axis: int
    thickness_mm: float
    centre: Row
    matrix: NDArray[np.float64]
    bend_mm: float
    more_fluid: float
    brain: bool
    motion_mm: float
    gain: float
    shading: float
    look: Recipe
    seed: int


def draw_stack(rng: np.random.Generator) -> Stack:
    """Draw one stack's geometry, contrast and faults."""
    axis, thickness = int(rng.integers(3)), float(rng.uniform(*_THICKNESS_MM))
    field, centre = rng.uniform(*_SIDE_MM, 3), rng.uniform(0.25, 0.75, 3)
    field[axis], centre[axis] = rng.uniform(*_SLAB_MM), rng.uniform(0.3, 0.7)
    size = np.exp(rng.uniform(-0.25, 0.2) + rng.uniform(-0.08, 0.08, 3))
    more, brain, motion = rng.random(3) < (MORE_FLUID_CHANCE, 1 - NO_BRAIN_CHANCE, MOTION_CHANCE)
    blur = rng.uniform(0.3, 0.8, 3)
    look = replace(
        draw_recipe(rng, fetal=True),
        slices=(axis, thickness),
        blur_mm=(float(blur[0]), float(blur[1]), float(blur[2])),
        noise=float(rng.uniform(0.0, 0.04)),
    )
    return Stack(
        field_mm=(float(field[0]), float(field[1]), float(field[2])),
        axis=axis,
        thickness_mm=thickness,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        matrix=_turn(rng) * size,
        bend_mm=float(rng.uniform(0.0, 2.5)),
        more_fluid=float(rng.uniform(0.08, 0.5)) * bool(more),
        brain=bool(brain),
        motion_mm=float(rng.uniform(0.0, 1.25)) * bool(motion),
        gain=float(rng.uniform(0.0, 0.15)),
        shading=float(rng.uniform(0.05, 0.45)),
        look=look,
        seed=int(rng.integers(2**63)),
    )


def generate_stack(labels: Labels, spacing_mm: float, stack: Stack) -> tuple[Field, Labels]:
    """Make the stack that was drawn, on the network's even grid, and its brain mask.

    Args:
        labels: uint8 [X, Y, Z] in RAS, FeTA's seven tissues.
        spacing_mm: Edge of its voxels, and of the result's.
        stack: From `draw_stack`.

    Returns:
        Image float32, normalised as `generation.generate` does it, and uint8 mask of brain with its fluid, of one
        shape: the field of view.
    """
    room = _Room(np.random.default_rng(stack.seed), spacing_mm, stack)
    brain = _place(room, labels, stack)
    radius = float(np.cbrt(3 * (labels > 0).sum() * spacing_mm**3 / (4 * np.pi * abs(np.linalg.det(stack.matrix)))))
    image = _tissue(room, (15, 45), (5, 14))
    womb = _paint_womb(room, image, radius)
    if room.rng.random() < BODY_CHANCE:
        _paint_body(room, image, radius)
    for _ in range(int(room.rng.integers(_MOST_BALLS + 1))):
        _paint_ball(room, image)
    _paint_head(room, image, brain, stack.look)
    if room.rng.random() < OUTLINE_CHANCE:
        _paint_outline(room, image, womb)
    mask = (brain > 0).astype(np.uint8)
    _shift_slices(room, image, mask, stack)
    image = resampling.apply(generation.resolution(room.shape, spacing_mm, stack.look), np.maximum(image, 0))
    image *= np.exp(room.noise(room.between(60, 150), stack.shading))
    return generation.normalise(generation.rician(room.rng, image, stack.look.noise), stack.look.gamma), mask


class _Room:
    """A stack's grid, with places in mm about the head's centre, and the generator that fills it."""

    def __init__(self, rng: np.random.Generator, spacing_mm: float, stack: Stack) -> None:
        self.rng, self.spacing_mm, self.field_mm = rng, spacing_mm, stack.field_mm
        first, second, third = (max(8, round(side / spacing_mm)) for side in stack.field_mm)
        self.shape = (first, second, third)
        self.places = tuple(
            ((np.arange(side, dtype=np.float32) - np.float32(share * side)) * np.float32(spacing_mm)).reshape(
                [-1 if axis == own else 1 for axis in range(3)]
            )
            for own, (side, share) in enumerate(zip(self.shape, stack.centre, strict=True))
        )

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def noise(self, scale_mm: float, sd: float) -> Field:
        """Smooth noise [X, Y, Z] with knots `scale_mm` apart."""
        return generation.noise(self.rng, self.shape, self.spacing_mm, scale_mm) * np.float32(sd)

    def along(self, direction: NDArray[np.float64], origin: NDArray[np.float64]) -> Field:
        """Projection on a direction of each place seen from an origin, both in mm."""
        return np.asarray(
            sum(
                np.float32(step) * (place - np.float32(start))
                for step, place, start in zip(direction, self.places, origin, strict=True)
            ),
            np.float32,
        )

    def length(self, frame: NDArray[np.float64], origin: NDArray[np.float64]) -> Field:
        """Length of each place seen from an origin, in a frame whose rows are scaled directions."""
        return np.asarray(np.sqrt(sum(self.along(row, origin) ** 2 for row in frame)), np.float32)

    def direction(self) -> NDArray[np.float64]:
        drawn = self.rng.normal(size=3)
        return np.asarray(drawn / np.linalg.norm(drawn))


def _turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation, every one as likely (Shoemake 1992): a fetus lies as it likes."""
    quaternion = rng.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _place(room: _Room, labels: Labels, stack: Stack) -> Labels:
    """The label map turned, scaled and bent into the field of view; background where there is none of it."""
    if not stack.brain:
        return np.zeros(room.shape, np.uint8)
    index, inside = np.zeros(room.shape, np.int64), np.ones(room.shape, np.bool_)
    for row, side in zip(stack.matrix, labels.shape, strict=True):
        place = room.along(row, np.zeros(3)) + room.noise(_BEND_SCALE_MM, stack.bend_mm)
        at = np.rint(place / np.float32(room.spacing_mm) + np.float32((side - 1) / 2)).astype(np.int64)
        inside &= (at >= 0) & (at < side)
        index = index * side + np.clip(at, 0, side - 1)
    brain: Labels = np.where(inside, labels.ravel()[index], np.uint8(0))
    if stack.more_fluid > 0:
        near = generation.share(brain > 0, room.spacing_mm, _FLUID_REACH_MM) > stack.more_fluid
        brain[(brain == 0) & near] = EXTERNAL_CSF
    return brain


def _greys(room: _Room, count: int, dark: float) -> Field:
    """Greys of which a share is dark, as muscle and organs are where fluid and fat are bright."""
    low, high = room.rng.uniform(0.05, 0.45, count), room.rng.uniform(0.3, 1.0, count)
    return np.where(room.rng.random(count) < dark, low, high).astype(np.float32)


def _shapes(room: _Room, scale_mm: float, count: int) -> Labels:
    """Random shapes: at each voxel the number of the largest of `count` smooth noises (SynthMorph, Hoffmann 2022)."""
    largest, labels = room.noise(scale_mm, 1.0), np.zeros(room.shape, np.uint8)
    for number in range(1, count):
        other = room.noise(scale_mm * room.between(0.6, 1.6), 1.0)
        labels[other > largest] = number
        largest = np.maximum(largest, other)
    return labels


def _tissue(room: _Room, coarse_mm: Range, fine_mm: Range) -> Field:
    """Organs of nobody: coarse shapes of which each has its own share of fine ones, and grain."""
    dark = room.between(0.5, 0.9)
    organs = _shapes(room, room.between(*coarse_mm), count := int(room.rng.integers(4, 10)))
    grains = _shapes(room, room.between(*fine_mm), fine := int(room.rng.integers(3, 7)))
    mix = room.rng.uniform(0.0, 0.9, count).astype(np.float32)[organs]
    image = (1 - mix) * _greys(room, count, dark)[organs] + mix * _greys(room, fine, dark)[grains]
    return np.asarray(image * (1 + room.noise(room.between(2.5, 8), room.between(0.02, 0.2))), np.float32)


def _paint_womb(room: _Room, image: Field, radius: float) -> Field:
    """Amniotic fluid about the head, the wall and the placenta, in place; returns the distance to the fluid in mm."""
    axes = radius * room.rng.uniform(1.15, 2.6, 3)
    origin = room.direction() * room.between(0, 1) * np.maximum(axes - 1.05 * radius, 0)
    size = float(axes.mean())
    outside = room.length(_turn(room.rng) / axes[:, None], origin) * np.float32(size) - np.float32(size)
    outside += room.noise(25.0, room.between(2, 8))
    placenta = np.maximum(room.noise(60.0, room.between(0, 15)), 0)
    wall = room.between(0.15, 0.7) * (1 + room.noise(room.between(3, 10), room.between(0.03, 0.25)))
    wall += np.float32(room.between(0, 0.3)) * (room.noise(room.between(4, 12), 1.0) > 1)
    np.copyto(image, wall, where=outside < np.float32(room.between(3, 14)) + placenta)
    np.copyto(image, np.float32(room.between(0.75, 1.1)) * (1 + room.noise(8.0, 0.06)), where=outside < 0)
    return outside


def _paint_body(room: _Room, image: Field, radius: float) -> None:
    """The fetus's trunk: a capsule that begins beside the head, full of organs, with skin."""
    towards = room.direction()
    start, along = towards * radius * room.between(0.95, 1.3), towards + 0.6 * room.direction()
    along /= np.linalg.norm(along)
    reach, width = radius * room.between(1.2, 3.0), radius * room.between(0.5, 1.05)
    done = np.clip(room.along(along, start), 0, np.float32(reach))
    gaps = (
        place - np.float32(first) - done * np.float32(step)
        for place, first, step in zip(room.places, start, along, strict=True)
    )
    outside = np.sqrt(sum(gap**2 for gap in gaps)) + room.noise(15.0, 3.0)
    outside -= np.float32(width) * (np.float32(0.6) + np.float32(0.4) * np.minimum(done / np.float32(0.3 * reach), 1))
    np.copyto(image, _tissue(room, (8, 25), (4, 9)), where=outside < 0)
    skin = (outside < 0) & (outside > -np.float32(room.between(1, 4)))
    image[skin] = room.between(0.2, 0.9)


def _paint_ball(room: _Room, image: Field) -> None:
    """A bladder, a stomach, an eye: a ball of one grey, often with a rim."""
    at = np.array([room.between(float(place.min()), float(place.max())) for place in room.places])
    outside = room.length(np.diag(1 / room.rng.uniform(0.6, 1.4, 3)), at) - np.float32(room.between(5, 35))
    outside += room.noise(15.0, 2.0)
    image[outside < 0] = room.between(0.05, 1.1)
    if room.rng.random() < 0.5:
        image[(outside < 0) & (outside > -room.between(2, 6))] = room.between(0.05, 0.8)


def _paint_head(room: _Room, image: Field, brain: Labels, look: Recipe) -> None:
    """Scalp and skull as rings about the brain, and the brain's tissues."""
    near = generation.share(brain > 0, room.spacing_mm, room.between(2, 5)) + room.noise(10.0, 0.05 * brain.any())
    image[near > _SCALP] = room.between(0.15, 0.6)
    image[near > _SKULL] = room.between(0.02, 0.25)
    np.copyto(image, generation.paint_tissues(room.rng, brain, room.spacing_mm, look), where=brain > 0)


def _paint_outline(room: _Room, image: Field, womb: Field) -> None:
    """The mother's outline, but for the womb: fat under it, and air outside."""
    field = np.array(room.field_mm)
    middle = np.array([float(place.mean()) for place in room.places]) + field * room.rng.uniform(-0.2, 0.2, 3)
    far = room.length(np.diag(1 / (field * room.rng.uniform(0.4, 0.75, 3))), middle) + room.noise(50.0, 0.05)
    beyond = womb > 15
    image[beyond & (far > 1 - room.between(0.02, 0.15))] = room.between(0.2, 1.0)
    image[beyond & (far > 1)] = 0.01


def _shift_slices(room: _Room, image: Field, mask: Labels, stack: Stack) -> None:
    """Each slice moved within its plane by whole voxels, and a little brighter or darker, in place."""
    step = max(1, round(stack.thickness_mm / room.spacing_mm))
    slices, masks = np.moveaxis(image, stack.axis, 2), np.moveaxis(mask, stack.axis, 2)
    for start in range(0, slices.shape[2], step):
        part = np.s_[:, :, start : start + step]
        shift = tuple(int(voxels) for voxels in np.rint(room.rng.normal(0, stack.motion_mm / room.spacing_mm, 2)))
        slices[part] = np.roll(slices[part], shift, (0, 1))
        masks[part] = np.roll(masks[part], shift, (0, 1))
        slices[part] *= np.float32(np.clip(1 + stack.gain * room.rng.standard_normal(), 0.5, 1.5))
