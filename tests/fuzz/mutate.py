"""Valid inputs, changed at random in ways that parsers fear; a seed gives the same changes again."""

import json
import random
import struct
from collections.abc import Callable

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
           2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308)  # fmt: skip
TEXTS = (
    "", " ", "\0", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud800", "é" * 300, "a" * 5000, "../../x", "/etc/passwd",
    "/dev/zero", "pipe:false", "http://localhost:1/x", "file:///etc/passwd", "~/x", "C:\\x", "owner/name", "@../..",
    "<script>x</script>", "`x`|y", "<!-- written by ar-t2i: end -->", "---\n", "nan", "inf", "1e999", "true",
    "null", "{}", "%s%n", "{0.__class__}", "!!python/object/apply:os.system [x]", "*a", "&a", "<<",
)  # fmt: skip
TOKENS = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x80\0\0\0\0\0\0\0", b'"',
    b"'", b"{", b"}", b"[", b"]", b"[" * 200, b"{\"a\":" * 200, b":", b": ", b"\n", b"\r\n", b"\t", b",", b"-",
    b"- ", b"&a ", b"*a", b"<<: *a\n", b"!!", b"!!int ", b"!!binary ", b"!!timestamp ", b"!!set ", b"? ", b"|",
    b">", b"%YAML 9.9\n", b"---\n", b"...", b"1:2:3", b"0x", b"1e999", b".inf", b".nan", b"NaN", b"Infinity",
    b"99999999999999999999", b"-1", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[31m", b"\xc2\x9b2J", b"../", b"://",
    b"GNU.sparse.major=1\n", b"size=-1024\n", b"20 path=../../../x\n", b"\xff\xda", b"\xff\xd8", b"IHDR", b"IDAT",
    b"PAR1",
)  # fmt: skip
DEEP: list = []
for _ in range(120):
    DEEP = [DEEP]

Mutator = Callable[[random.Random, list[bytes]], bytes]


def change_bytes(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Flips, cuts, copies, splices and words that mean something to some parser."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(8)
        length = min(rng.choice((1, 2, 4, 8, 32, 200)), len(data) - place)
        if kind == 0 and length:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and length:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length] * rng.choice((1, 2, 20))
        elif kind == 4:
            token = rng.choice(TOKENS)
            data[place : place + rng.choice((0, len(token)))] = token
        elif kind == 5:
            del data[place:]
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[place : place + length] = other[start : start + rng.choice((4, 40, 400))]
        else:
            width = rng.choice((1, 2, 4, 8))
            number = int(rng.choice(NUMBERS[:20])) % (1 << 8 * width)
            data[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
    return bytes(data)


def hostile(rng: random.Random, value: object) -> object:
    """Another value in the place of one."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if isinstance(value, (int, float)) and kind < 8:
        return (
            value + rng.choice((-1, 1, 10**6)) if rng.random() < 0.5 else value * rng.choice((-1, 0, 2, 1000, 10**9))
        )
    return rng.choice((None, True, False, [], {}, [value], {"a": value}, [value] * 50, DEEP, [[]] * 3, ""))


def change_values(rng: random.Random, values: object) -> object:
    """Nested values with some of them swapped, dropped or renamed."""
    values = json.loads(json.dumps(values))
    places = []

    def walk(value: object) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            places.append((value, key))
            walk(item)

    walk(values)
    if not places or rng.random() < 0.01:
        return hostile(rng, values)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        group, key = rng.choice(places)
        if isinstance(group, list) and key >= len(group) or isinstance(group, dict) and key not in group:
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del group[key]
        elif kind == 1 and isinstance(group, dict):
            group[rng.choice((*TEXTS, str(key).upper(), f"{key}s"))] = group.pop(key)
        elif kind == 2 and isinstance(group, list):
            group[key:key] = [group[key]] * rng.choice((1, 3, 100))
        else:
            group[key] = hostile(rng, group[key])
    return values


def as_json(rng: random.Random, values: object) -> bytes:
    """The values as json, sometimes as text that is none."""
    text = json.dumps(values, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        text = text.replace(b"1", rng.choice((b"NaN", b"1e999", b"-Infinity", b"9" * 5000)), 1)
    return change_bytes(rng, [text]) if rng.random() < 0.25 else text


def change_json(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A json text with other values."""
    return as_json(rng, change_values(rng, json.loads(rng.choice(seeds))))


def change_safetensors(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Another header with the length that goes with it, or other bytes."""
    data = rng.choice(seeds)
    if rng.random() < 0.3:
        return change_bytes(rng, [data])
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "states" in header.get("__metadata__", {}) and rng.random() < 0.7:
        states = change_values(rng, json.loads(header["__metadata__"]["states"]))
        header["__metadata__"]["states"] = as_json(rng, states).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = as_json(rng, change_values(rng, header))
    length = rng.choice(NUMBERS[:19]) % 2**64 if rng.random() < 0.05 else len(text)
    return struct.pack("<Q", int(length)) + text + data[8 + size :]


def change_tar(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Fields of headers with checksums that fit, else tarfile passes over them; whole blocks moved; other bytes."""
    data = bytearray(rng.choice(seeds))
    if not data[257:262] == b"ustar":  # compressed
        return change_bytes(rng, [bytes(data)])
    for _ in range(rng.choice((1, 1, 2, 3))):
        heads = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
        if not heads:
            break
        head, kind = rng.choice(heads), rng.randrange(6)
        if kind == 0:
            size = rng.choice((
                b"00000000000", b"77777777777", b"00000000001", b"00000001000", b"-0000001000",
                b"\x80\0\0\0\0\0\0\x01\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xff\xfc\0\0\0",
            ))  # fmt: skip
            data[head + 124 : head + 124 + len(size)] = size
        elif kind == 1:
            data[head + 156] = rng.choice(b"0123456789LKSxgXVMND\0")
        elif kind == 2:
            name = rng.choice(
                (b"../../x.jpg", b"/etc/passwd.txt", b"a.pyd", b"a.pkl", b"a.b.c.jpg", b".jpg", b"\xff.jpg", b"a.json")
            )
            data[head : head + 100] = name.ljust(100, b"\0")
        elif kind == 3:
            block = bytes(data[head : head + 512 * rng.choice((1, 2, 3))])
            place = 512 * rng.randrange(len(data) // 512 + 1)
            data[place:place] = block * rng.choice((1, 2, 30))
        elif kind == 4:
            place = head + rng.randrange(500)
            data[place : place + 8] = rng.randbytes(8)
        else:
            del data[head : head + 512 * rng.choice((1, 2))]
        if data[head + 257 : head + 262] == b"ustar" and len(data) >= head + 512:
            data[head + 148 : head + 156] = b" " * 8
            data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + 512])
    return change_bytes(rng, [bytes(data)]) if rng.random() < 0.3 else bytes(data)
