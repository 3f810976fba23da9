"""Pictures to train the scene reader on: scenes of all splits, scenes put together freely, and what is no object.

A judge must know held-out pairs as well as all others, and must see where something is wrong. So half of the pictures
hold one to four things of any kind, colour and size anywhere; some hold blots and things that are half one kind and
half another, which count as no object, and things in none of the ten colours. All pictures are spoilt a little, as
those of an image tokenizer are.
"""

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ar_t2i.data.scenes import COLORS, KINDS, PLACES, SIZE, SPLITS, Scene, Thing, draw, masks, sample_scene
from ar_t2i.data.scenes.pen import DARK, Pen, blob, ellipse, mix, rounded

MOST_OBJECTS = 6
SIZES = tuple(range(60, 157, 12))
STRANGE_COLORS = ((40, 200, 200), (128, 130, 134), (170, 230, 40), (230, 30, 170), (150, 190, 240), (20, 30, 110))
"""Cyan, grey, lime, magenta, pale blue, navy: none of the ten colours."""
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Marked:
    """A picture and the objects in it."""

    image: Image.Image
    objects: list[tuple[int, int, Box]]
    """Index of the kind, index of the colour (the number of colours for none of them), and box of each."""
    place: int


def marked_picture(rng: np.random.Generator, spoilt: bool = True) -> Marked:
    """Draw a picture by lot: a scene of one of the splits, or one that is put together freely."""
    if rng.random() < 0.5:
        scene = sample_scene(rng, SPLITS[0] if rng.random() < 0.5 else SPLITS[2])
        marked = _marked(scene, draw(scene))
    else:
        scene = free_scene(rng, int(rng.choice([0, 1, 2, 3, 4], p=[0.04, 0.26, 0.3, 0.25, 0.15])))
        marked = _marked(scene, draw(scene))
    if rng.random() < 0.35:
        marked = _with_oddities(marked, rng)
    return Marked(spoil(marked.image, rng), marked.objects, marked.place) if spoilt else marked


def free_scene(rng: np.random.Generator, count: int) -> Scene:
    """Put up to `count` things of any kind, colour and size anywhere, so that most of each can be seen."""
    place = PLACES[int(rng.integers(len(PLACES)))]
    things: tuple[Thing, ...] = ()
    for _ in range(4 * count):
        if len(things) == count:
            break
        size = int(rng.choice(SIZES))
        left, top = (int(edge) for edge in rng.integers(0, SIZE - size + 1, 2))
        kind, color = list(KINDS)[int(rng.integers(len(KINDS)))], list(COLORS)[int(rng.integers(len(COLORS)))]
        thing = Thing(kind=kind, color=color, size=size, left=left, top=top, mirrored=bool(rng.integers(2)))
        if all(_apart(thing, other) for other in things):
            things = (*things, thing)
    return Scene(place=place, layout="beside", things=things, size_word=None)


def _apart(first: Thing, second: Thing) -> bool:
    """Whether the squares overlap by less than a quarter of the smaller one."""
    across = min(first.left + first.size, second.left + second.size) - max(first.left, second.left)
    down = min(first.top + first.size, second.top + second.size) - max(first.top, second.top)
    return max(across, 0) * max(down, 0) < 0.25 * min(first.size, second.size) ** 2


def _marked(scene: Scene, image: Image.Image) -> Marked:
    kinds, colors = list(KINDS), list(COLORS)
    objects = [
        (kinds.index(thing.kind), colors.index(thing.color), tight_box(mask))
        for thing, mask in zip(scene.things, masks(scene), strict=True)
    ]
    return Marked(image, objects, PLACES.index(scene.place))


def tight_box(mask: np.ndarray) -> Box:
    """x0, y0, x1, y1 around a (height, width) bool mask that is somewhere true; x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _with_oddities(marked: Marked, rng: np.random.Generator) -> Marked:
    """Paste one or two odd things where they hide next to nothing of the objects."""
    image, objects = marked.image.copy(), list(marked.objects)
    taken = [box for _, _, box in objects]
    for _ in range(int(rng.integers(1, 3))):
        sprite, kind = odd_thing(rng)
        for _ in range(12):
            left, top = (int(edge) for edge in rng.integers(0, SIZE - sprite.width + 1, 2))
            x0, y0, x1, y1 = tight_box(np.asarray(sprite.getchannel("A")) >= 128)
            box = (left + x0, top + y0, left + x1, top + y1)
            if any(
                min(box[2], b[2]) - max(box[0], b[0]) > 4 and min(box[3], b[3]) - max(box[1], b[1]) > 4 for b in taken
            ):
                continue
            image.paste(sprite, (left, top), sprite)
            taken.append(box)
            if kind is not None:
                objects.append((kind, len(COLORS), box))
            break
    return Marked(image, objects[:MOST_OBJECTS], marked.place)


def odd_thing(rng: np.random.Generator) -> tuple[Image.Image, int | None]:
    """A picture (RGBA) of something odd, and the index of its kind: None where it is no object at all.

    A blot, the upper half of one kind on the lower half of another, or a kind in none of the ten colours or in two of
    them side by side.
    """
    size, form = int(rng.choice(SIZES)), rng.random()
    if form < 0.35:
        return blot(rng, size), None
    first, second = (int(index) for index in rng.choice(len(KINDS), 2, replace=False))
    one, other = (tuple(COLORS.values())[int(index)] for index in rng.choice(len(COLORS), 2, replace=False))
    if form < 0.6:
        return _halves(_painted(first, one, size), _painted(second, other, size), 0.5, True), None
    if form < 0.78:
        return _painted(first, STRANGE_COLORS[int(rng.integers(len(STRANGE_COLORS)))], size), first
    share, upright = float(rng.uniform(0.35, 0.65)), bool(rng.random() < 0.3)
    return _halves(_painted(first, one, size), _painted(first, other, size), share, upright), first


def _halves(first: Image.Image, second: Image.Image, share: float, upright: bool) -> Image.Image:
    """The upper (or left) share of the first picture on the rest of the second."""
    sprite, side = second.copy(), second.width
    area = (0, 0, side, round(share * side)) if upright else (0, 0, round(share * side), side)
    sprite.paste(first.crop(area), area)
    return sprite


@functools.lru_cache(maxsize=2048)
def _painted(kind: int, rgb: tuple[int, int, int], size: int) -> Image.Image:
    pen = Pen("red", size)
    pen.body, pen.shade, pen.ink = rgb, mix(rgb, DARK, 0.16), mix(rgb, DARK, 0.66)
    list(KINDS.values())[kind].paint(pen)
    return pen.finish()


def blot(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a shape that means nothing (RGBA), with an outline and a few marks as objects have them."""
    pen = Pen(list(COLORS)[int(rng.integers(len(COLORS)))], size)
    angles = np.sort(rng.random(int(rng.integers(4, 10)))) * 2 * np.pi
    radii = rng.uniform(15, 46, len(angles))
    corners = [
        (50 + float(radius * np.cos(angle)), 50 + float(radius * np.sin(angle)))
        for angle, radius in zip(angles, radii, strict=True)
    ]
    soft = rng.random() < 0.6
    pen.shape(pen.body, blob(*corners) if soft else rounded(corners, float(rng.uniform(1, 8))))
    if rng.random() < 0.4:
        x, y = (float(value) for value in rng.uniform(30, 70, 2))
        pen.shape(pen.body, ellipse(x, y, float(rng.uniform(8, 25)), float(rng.uniform(8, 25))))
    for _ in range(int(rng.integers(0, 4))):
        x, y = (float(value) for value in rng.uniform(35, 65, 2))
        pen.mark((pen.shade, pen.light, DARK)[int(rng.integers(3))], ellipse(x, y, float(rng.uniform(2, 9)), 5.0))
    return pen.finish()


def spoil(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Spoil a picture a little, or not at all (one in four): bends, blur, smudges, other light, noise, JPEG."""
    if rng.random() < 0.25:
        return image
    if rng.random() < 0.2:
        image = _bent(image, rng)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(0.3 * 15 ** rng.random())))  # 0.3 to 4.5 pixels
    if rng.random() < 0.35:
        image = _smudged(image, rng)
    if rng.random() < 0.25:
        side = int(SIZE * rng.uniform(0.4, 0.8))
        image = image.resize((side, side), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.6:
        gain, shift = rng.uniform(0.92, 1.08, 3), rng.uniform(-9, 9, 3)
        tables = np.clip(np.arange(256)[None] * gain[:, None] + shift[:, None], 0, 255)
        image = image.point(np.round(tables).astype(int).ravel().tolist())
    if rng.random() < 0.3:
        noise = rng.integers(-8, 9, (SIZE // 2, SIZE // 2, 3), dtype=np.int16).repeat(2, 0).repeat(2, 1)
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=int(rng.integers(35, 90)))
        image = Image.open(content).convert("RGB")
    return image


def _bent(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bend a picture: the inner corners of a net of 4 x 4 meshes move by up to 5 pixels."""
    corners = np.stack(np.meshgrid(np.arange(0, SIZE + 1, 64), np.arange(0, SIZE + 1, 64)), -1)
    moved = corners.astype(float)
    moved[1:-1, 1:-1] += rng.uniform(-5, 5, (3, 3, 2))
    meshes = [
        (
            (*corners[row, column], *corners[row + 1, column + 1]),
            tuple(moved[[row, row + 1, row + 1, row], [column, column, column + 1, column + 1]].ravel()),
        )
        for row in range(4)
        for column in range(4)
    ]
    return image.transform(image.size, Image.Transform.MESH, meshes, Image.Resampling.BILINEAR)


def _smudged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur one to three small patches heavily, or mix a faint other tone into them."""
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        width, height = (int(side) for side in rng.integers(12, 44, 2))
        left, top = int(rng.integers(SIZE - width)), int(rng.integers(SIZE - height))
        area = (left, top, left + width, top + height)
        patch = image.crop(area).filter(ImageFilter.GaussianBlur(5))
        tone = Image.new("RGB", patch.size, tuple(int(value) for value in rng.integers(0, 256, 3)))
        patch = Image.blend(patch, tone, float(rng.uniform(0, 0.3)))
        cover = Image.new("L", patch.size)
        cover.paste(220, (4, 4, width - 4, height - 4))
        image.paste(patch, (left, top), cover.filter(ImageFilter.GaussianBlur(3)))
    return image
