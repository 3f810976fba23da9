"""Scene to picture and truth: cached object pictures pasted on cached backgrounds."""

import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ar_t2i.data.scenes.pen import SUPERSAMPLE, Pen
from ar_t2i.data.scenes.places import SIZE, background
from ar_t2i.data.scenes.world import FOOT, KINDS, Scene, Thing


@functools.lru_cache(maxsize=2048)
def _paint(kind: str, color: str, size: int) -> Image.Image:
    """Draw an object facing right (RGBA)."""
    pen = Pen(color, size)
    KINDS[kind].paint(pen)
    return pen.finish()


def _sprite(thing: Thing) -> Image.Image:
    """Return the picture of a thing (RGBA)."""
    image = _paint(thing.kind, thing.color, thing.size)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.mirrored else image


@functools.cache
def _shadow(kind: str, size: int) -> Image.Image:
    """Draw the soft shadow under an object of `size` pixels: its cover (L)."""
    width, height = round(KINDS[kind].shadow * size / 100), round(size * 0.14)
    cover = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    ImageDraw.Draw(cover).ellipse((0, 0, width * SUPERSAMPLE - 1, height * SUPERSAMPLE - 1), fill=44)
    return cover.reduce(SUPERSAMPLE)


def _stands(scene: Scene, index: int) -> bool:
    """Whether a thing stands on the ground."""
    if index == 1 and scene.layout in ("on", "above"):
        return False
    return not KINDS[scene.things[index].kind].floats


def draw(scene: Scene) -> Image.Image:
    """Draw the scene as a new RGB picture of 256 x 256 pixels."""
    picture = background(scene.place).copy()
    for index, thing in enumerate(scene.things):
        if _stands(scene, index):
            shadow = _shadow(thing.kind, thing.size)
            foot = (100 - KINDS[thing.kind].foot if thing.mirrored else KINDS[thing.kind].foot) * thing.size / 100
            corner = (
                round(thing.left + foot - shadow.width / 2),
                round(thing.top + FOOT * thing.size - shadow.height / 2),
            )
            picture.paste((30, 24, 60), corner, shadow)
    for thing in scene.things:
        sprite = _sprite(thing)
        picture.paste(sprite, (thing.left, thing.top), sprite)
    return picture


def _encode(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a (height, width) bool mask as COCO's uncompressed run-length code."""
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(turns, prepend=0, append=flat.size).tolist()
    return {"size": [*mask.shape], "counts": [0, *counts] if flat[0] else counts}


def decode_mask(code: dict[str, list[int]]) -> np.ndarray:
    """Decode COCO's uncompressed run-length code {"size": [height, width], "counts": runs}.

    The runs go down the columns, column after column, off and on in turn, off first.

    Returns:
        A bool array of (height, width).

    Raises:
        ValueError: the runs do not add up to height x width.
    """
    height, width = code["size"]
    counts = code["counts"]
    if sum(counts) != height * width:
        raise ValueError(f"the runs of a mask add up to {sum(counts)}, expected {height} x {width} = {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def masks(scene: Scene) -> list[np.ndarray]:
    """Return for each thing the (256, 256) bool mask of what can be seen of it."""
    seen = []
    free = np.ones((SIZE, SIZE), dtype=bool)
    for thing in reversed(scene.things):
        window = _window(thing)
        own = np.zeros((SIZE, SIZE), dtype=bool)
        solid = np.asarray(_sprite(thing).getchannel("A")) >= 128
        own[window] = solid & free[window]
        free[window] &= ~solid
        seen.append(own)
    return seen[::-1]


def _window(thing: Thing) -> tuple[slice, slice]:
    return slice(thing.top, thing.top + thing.size), slice(thing.left, thing.left + thing.size)


def _box(mask: np.ndarray) -> list[int]:
    """Return the tight box [x0, y0, x1, y1] around a mask, x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def truth(scene: Scene) -> dict[str, Any]:
    """Return what the picture shows, ready for json.

    Keys: "place"; "objects", each {"kind", "color", "size" in pixels of its square, "layer" with 0 at the back,
    "box" [x0, y0, x1, y1] in pixels with x1 and y1 exclusive, tight around the mask, "mask" of the visible part in
    COCO's uncompressed run-length code}; "size_word" for a single object, else None; "relations" as
    [index, relation, index] over the objects; "counts" by kind.
    """
    objects = []
    counts: dict[str, int] = {}
    for layer, (thing, mask) in enumerate(zip(scene.things, masks(scene), strict=True)):
        counts[thing.kind] = counts.get(thing.kind, 0) + 1
        facts = {"kind": thing.kind, "color": thing.color, "size": thing.size, "layer": layer}
        objects.append({**facts, "box": _box(mask), "mask": _encode(mask)})
    return {
        "place": scene.place,
        "objects": objects,
        "size_word": scene.size_word,
        "relations": [list(relation) for relation in scene.relations],
        "counts": counts,
    }
