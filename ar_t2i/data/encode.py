"""Pictures to codes on the best device, in bfloat16 where that is fast and gives the same codes.

Shape suffixes: B batch, S picture edge, T codes of a picture.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ar_t2i.device import has_fast_bf16, pick_device
from ar_t2i.image_tokenizer import ImageTokenizer

T = TypeVar("T")
Arithmetic = Literal["auto", "float32", "bfloat16"]
LEAST_AGREEMENT = 0.99
"""Part of the codes that bfloat16 must have in common with float32 to be used."""
COMPARED = 16
"""Pictures of the first batch on which the two are compared."""


class Encoder:
    """An image tokenizer on a device, with its arithmetic chosen on the first batch.

    Attributes:
        device: where it runs.
        dtype: "float32" or "bfloat16"; "auto" until the first batch has been compared.
    """

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        device: str = "auto",
        dtype: Arithmetic = "auto",
        used: Collection[str] = (),
        say: Callable[[str], None] = print,
        settle: Callable[[str], str] = str,
    ):
        """Move the tokenizer to the device.

        Args:
            image_tokenizer: changed in place.
            device: as `pick_device` takes it.
            dtype: "auto" compares; the others are taken as they are.
            used: `arithmetic` of earlier runs that "auto" goes on with if it was on a like device.
            say: where the outcome of the comparison goes.
            settle: gives the `arithmetic` that all processes of a run take, from the one that this one would choose.

        Raises:
            ValueError: a device that this machine has not.
        """
        self.device = pick_device(device)
        self.image_tokenizer = image_tokenizer.to(self.device).eval()
        self.dtype: Arithmetic = dtype
        if dtype == "auto" and (f"{self.device.type} float32" in used or not has_fast_bf16(self.device)):
            self.dtype = "float32"
        elif dtype == "auto" and f"{self.device.type} bfloat16" in used:
            self.dtype = "bfloat16"
        self.say, self.settle = say, settle

    @property
    def arithmetic(self) -> str:
        """Kind of device and number format, such as "cuda bfloat16"."""
        return f"{self.device.type} {self.dtype}"

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Encode B pictures, (S, S, 3) uint8 each, to (B, T) int64 codes.

        Raises:
            ValueError: the tokenizer gives codes of another shape or beyond its codebook.
        """
        return self._begin(pictures)()

    def ahead(self, batches: Iterable[tuple[T, Sequence[np.ndarray]]]) -> Iterator[tuple[T, np.ndarray]]:
        """Pairs of anything and B pictures to pairs of it and their codes, as a call gives them, in order.

        A GPU already has the next batch while the codes of one are put to use.
        """
        begun: tuple[T, Callable[[], np.ndarray]] | None = None
        for item, pictures in batches:
            before, begun = begun, (item, self._begin(pictures))
            if before is not None:
                yield before[0], before[1]()
        if begun is not None:
            yield begun[0], begun[1]()

    def _begin(self, pictures: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Hand the work to the device; the result waits for it."""
        pixels_BSS3 = torch.from_numpy(np.stack(pictures))
        apart = self.device.type == "cuda"  # what is copied from and to pinned memory, the process does not wait for
        pixels_BSS3 = (pixels_BSS3.pin_memory() if apart else pixels_BSS3).to(self.device, non_blocking=apart)
        pixels_B3SS = pixels_BSS3.permute(0, 3, 1, 2).contiguous().float().div_(255)
        if self.dtype == "auto":
            self.dtype = self._settled(self._compare(pixels_B3SS[:COMPARED]))
        codes_BT = self._encode(pixels_B3SS, self.dtype).to("cpu", non_blocking=apart)
        arrived = torch.cuda.current_stream(self.device).record_event() if apart else None

        def finish() -> np.ndarray:
            if arrived is not None:
                arrived.synchronize()
            return self._checked(codes_BT, len(pictures))

        return finish

    def _checked(self, codes_BT: Tensor, count: int) -> np.ndarray:
        expected, size = (count, self.image_tokenizer.num_codes), self.image_tokenizer.codebook_size
        if tuple(codes_BT.shape) != expected or codes_BT.min() < 0 or codes_BT.max() >= size:
            raise ValueError(
                f"the image tokenizer gave codes {codes_BT.min()} to {codes_BT.max()}, shape {tuple(codes_BT.shape)}; "
                f"expected 0 to {size - 1}, shape {expected}: its config and weights do not fit"
            )
        return codes_BT.numpy().astype(np.int64)

    @torch.inference_mode()
    def _encode(self, pixels_B3SS: Tensor, dtype: Arithmetic) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            return self.image_tokenizer.encode(pixels_B3SS)

    def _settled(self, chosen: Arithmetic) -> Arithmetic:
        settled = self.settle(f"{self.device.type} {chosen}")
        dtype: Arithmetic = "bfloat16" if settled.endswith("bfloat16") else "float32"
        if dtype != chosen:
            self.say(f"another process chose first: {dtype} it is")
        return dtype

    def _compare(self, pixels_B3SS: Tensor) -> Arithmetic:
        exact_BT, fast_BT = (self._encode(pixels_B3SS, dtype) for dtype in ("float32", "bfloat16"))
        same = (exact_BT == fast_BT).float().mean().item()
        chosen: Arithmetic = "bfloat16" if same >= LEAST_AGREEMENT else "float32"
        self.say(f"bfloat16 gives {same:.1%} of the codes of float32 on {len(pixels_B3SS)} pictures "
                 f"({LEAST_AGREEMENT:.0%} needed): {chosen} it is")  # fmt: skip
        return chosen
