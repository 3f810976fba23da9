"""What others may have written, read within bounds and shown without harm.

Whatever is wrong with it is a `ValueError` of one line: no traceback, no endless loop, no memory beyond the limits
here, and nothing in it is ever run. SECURITY.md tells what is trusted and what is not.
"""

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

if TYPE_CHECKING:
    from torch import Tensor

JSON_BYTES = 16 * 2**20
"""Of a json file or text; those that are read here have some KB."""
YAML_BYTES = 2**18
"""Of a yaml text, and of what it becomes when every alias is replaced by what it stands for; PyYAML needs some
seconds for the worst of that size."""
HEADER_BYTES = 32 * 2**20
"""Of a safetensors file's header; that of a thousand layers has 2 MB."""
SHOWN_CHARS = 2000
"""Of a text from elsewhere in a message."""


def check_file(path: Path, most: int) -> None:
    """Refuse what is no plain file of at most `most` bytes: a device or a pipe may have no end.

    Raises:
        OSError: there is no such file.
        ValueError: no plain file, or a larger one.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no plain file")
    if status.st_size > most:
        raise ValueError(f"{path} has {status.st_size:,} bytes, more than the {most:,} that are read of such a file")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: no plain file, or a larger one.
    """
    check_file(path, most)  # asked first: to open a pipe waits for its writer
    with open(path, "rb") as file:
        return file.read(os.fstat(file.fileno()).st_size)  # not `most`, for which memory would be taken at once


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """The text of a file in UTF-8; see `read_bytes`.

    Raises:
        OSError: it cannot be read.
        ValueError: no plain file, a larger one, or no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The json object in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, no json, or no object; the file is named.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, name: str) -> dict[str, Any]:
    """The json object in a text, whose source `name` is.

    Raises:
        ValueError: too large, no json, numbers that are none, or no object; `name` stands in the message.
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"{name} has more than the {JSON_BYTES:,} bytes that are read of json")
    try:
        values = json.loads(text, parse_constant=_no_number)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also bytes that are no text, and whole numbers too long
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{name} is not valid json: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}, expected a json object")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def parse_yaml(text: str, name: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The values in a yaml text, whose source `name` is; only plain ones, whatever its tags ask for.

    Raises:
        ValueError: too large, no yaml, aliases that stand for too much or for themselves.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"{name} has more than the {YAML_BYTES:,} characters that are read of yaml")
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > YAML_BYTES:
            raise ValueError("its aliases stand for too much")
        return reader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, AttributeError, KeyError, TypeError) as error:
        # the last four: PyYAML on dates and numbers that are none
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{name} is not valid yaml: {reason}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Characters of a node with all aliases in it replaced by what they stand for."""
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > 400 and node.tag != "tag:yaml.org,2002:str":
            raise ValueError("a number of more than 400 characters")  # 1:1:1:... takes hours
        return len(node.value) + 1
    size = known.get(id(node))
    if size == 0:
        raise ValueError("an alias stands for itself")
    if size is None:
        known[id(node)] = 0
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        size = known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return size


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file, by name, on the CPU; they are mapped, not copied.

    Raises:
        ValueError: it is missing, damaged, no safetensors file, or has an absurd header; the file is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_tensors(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({_first_line(error)}); fetch it again") from error


def check_tensors(path: Path) -> None:
    """Refuse a file that cannot be a safetensors file, or whose header alone would fill the memory.

    Raises:
        ValueError: the file is named.
    """
    try:
        check_file(path, sys.maxsize)
        with open(path, "rb") as file:
            start, size = file.read(8), path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    header = int.from_bytes(start, "little")
    if len(start) < 8 or header > size - 8:
        raise ValueError(f"{path} is damaged or no safetensors file (it ends in its header); fetch it again")
    if header > HEADER_BYTES:
        raise ValueError(f"{path} has a header of {header:,} bytes, expected at most {HEADER_BYTES:,}")


def stored_shapes(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, by name; only its header is read.

    Raises:
        ValueError: as for `read_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    check_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({_first_line(error)}); fetch it again") from error


@contextmanager
def outlined(name: str) -> Iterator[None]:
    """What is built inside takes no memory, however large its config says it is (torch's meta device).

    Raises:
        ValueError: sizes that no tensor can have; `name` stands in the message.
    """
    import torch

    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(f"{name} describes tensors that cannot be: {_first_line(error)}") from error


def leads_out(path: str) -> bool:
    """Whether what a file names by this path may lie outside of the file's folder, or is a web address."""
    return "://" in path or "::" in path or os.path.isabs(path) or os.pardir in path.replace("\\", "/").split("/")


def printable(text: str) -> str:
    """A text as one line that a terminal only shows: what would steer it becomes an escape such as that of Python."""
    line = " ".join(text[: SHOWN_CHARS + 1].split())
    shown = "".join(
        letter if letter.isprintable() or letter in _JOINERS else letter.encode("unicode_escape").decode()
        for letter in line
    )
    return shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"


_JOINERS = "\u200c\u200d"
"""Invisible, but without them some scripts and emojis fall apart."""


def _first_line(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])
