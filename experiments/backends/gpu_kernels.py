"""Products of 8-bit codes on a GPU by every operator that could carry them: how exact and how fast.

python -m experiments.backends.gpu_kernels [DEVICE] [FILE]
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from experiments.backends.gpu_operands import REFERENCE, Operands, Shape

Product = Callable[[], Tensor]
SECONDS = 17.0
"""No case is begun later than this."""
ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError)
"""The errors of an operator that is missing or takes no such operands."""


SHAPES = (
    Shape("ddpm", 16, 16, 3, 32),
    Shape("ddpm", 64, 64, 3, 8),
    Shape("ddpm", 96, 96, 3, 4),
    Shape("ddpm", 192, 96, 1, 4),
    Shape("ddpm", 64, 64, 0, 8),
    Shape("3g", 128, 128, 3, 32),
    Shape("3g", 192, 192, 3, 16),
    Shape("3g", 384, 192, 3, 8),
    Shape("3g", 256, 128, 1, 32),
    Shape("3g", 192, 192, 0, 16),
    Shape("dit", 128, 128, 0, 4),
    Shape("dit", 128, 512, 0, 4),
    Shape("dit", 512, 128, 0, 4),
    Shape("dit-xl", 1152, 4608, 0, 16),
)
BATCHES = (64, 1, 256)


def products(o: Operands) -> Iterator[tuple[str, bool, Callable[[], Product]]]:
    """Names, whether TF32 is on, and what makes the product: sums over codes (u - z) of the whole layer."""
    for last in (False, True) if o.shape.k else (False,):
        order = torch.channels_last if last else torch.contiguous_format
        mark = " nhwc" if last else ""
        for name, dtype, tf32 in (
            ("fp32", torch.float32, False),
            ("tf32", torch.float32, True),
            ("bf16", torch.bfloat16, False),
            ("fp16", torch.float16, False),
        ):
            yield f"{name}{mark}", tf32, _plain(o, dtype, order)
    yield "int_mm", False, _int_mm(o)
    yield "bf16 mm -> fp32", False, _mm(o, torch.bfloat16)
    yield "fp16 mm -> fp32", False, _mm(o, torch.float16)
    yield "fp8 (time only)", False, _fp8(o)


def _plain(o: Operands, dtype: torch.dtype, order: torch.memory_format) -> Callable[[], Product]:
    def make() -> Product:
        codes, weight = o.codes.to(dtype), o.weight.to(dtype)
        if o.shape.k:
            codes, weight = codes.contiguous(memory_format=order), weight.contiguous(memory_format=order)
        return lambda: o.operation(codes, weight)

    return make


def _signed(o: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Codes in int8, channels innermost, the columns, and zero times the sums of the columns, (O,) int32."""
    signed = (o.codes + o.ZERO).to(torch.int8)
    if o.shape.k:
        signed = signed.contiguous(memory_format=torch.channels_last)
    columns = o.columns().to(torch.int8)
    return signed, columns, (o.ZERO * columns.long().sum(0)).int()


def _int_mm(o: Operands) -> Callable[[], Product]:
    def make() -> Product:
        signed, columns, shift = _signed(o)
        sums = torch._int_mm(o.patches(signed, o.ZERO), columns)
        exact = o.folded(sums - shift)[:REFERENCE]
        if not torch.equal(exact.double(), o.reference()):
            raise ValueError("sums differ")
        return lambda: o.folded(torch._int_mm(o.patches(signed, o.ZERO), columns))

    return make


def _mm(o: Operands, dtype: torch.dtype) -> Callable[[], Product]:
    def make() -> Product:
        codes = o.codes.to(dtype)
        if o.shape.k:
            codes = codes.contiguous(memory_format=torch.channels_last)
        columns = o.columns().to(dtype)
        return lambda: o.folded(torch.mm(o.patches(codes), columns, out_dtype=torch.float32))

    return make


def _fp8(o: Operands) -> Callable[[], Product]:
    def make() -> Product:
        if o.shape.k > 1:
            raise NotImplementedError("of matrices only")
        codes, columns = o.patches(o.codes).to(torch.float8_e4m3fn), o.columns().to(torch.float8_e4m3fn)
        one = torch.ones((), device=o.device)
        return lambda: torch._scaled_mm(codes, columns, one, one, out_dtype=torch.bfloat16)

    return make


class WholeLayer:
    """The products of a whole layer, from its float input to its float output.

    Args:
        o: of the layer.
    """

    def __init__(self, o: Operands) -> None:
        self.o, self.order = o, torch.channels_last if o.shape.k else torch.contiguous_format
        self.scale, self.across = o.INPUT_SCALE * o.scale, (-1, 1, 1) if o.shape.k else (-1,)
        self.x = o.x.contiguous(memory_format=self.order)

    def weight(self) -> Tensor:
        """The float weight."""
        scale = self.o.scale.view(-1, *[1] * (self.o.weight.ndim - 1))
        return (self.o.weight * scale).contiguous(memory_format=self.order)

    def of_floats(self) -> Product:
        """The float layer."""
        weight = self.weight()
        return lambda: self.o.operation(self.x, weight, self.o.bias)

    def simulated(self) -> Product:
        """The same on numbers of a grid."""
        weight = self.weight()
        return lambda: self.o.operation(self.o.rounded(self.x).mul_(self.o.INPUT_SCALE), weight, self.o.bias)

    def of_codes(self) -> Product:
        """The layer's own operation on codes in float32."""
        weight = self.o.weight.contiguous(memory_format=self.order)
        by, add = self.scale.view(self.across), self.o.bias.view(self.across)
        return lambda: torch.addcmul(add, self.o.operation(self.o.rounded(self.x), weight), by)

    def of_int8(self) -> Product:
        """A product of int8 matrices."""
        o, (_, columns, shift) = self.o, _signed(self.o)
        add = o.bias - self.scale * shift

        def product() -> Tensor:
            signed = o.rounded(self.x).add_(o.ZERO).to(torch.int8)
            return o.folded((torch._int_mm(o.patches(signed, o.ZERO), columns) * self.scale).add_(add))

        return product

    def of_bfloat16(self) -> Product:
        """A product of matrices of bfloat16, summed in float32."""
        o, columns = self.o, self.o.columns().to(torch.bfloat16)

        def product() -> Tensor:
            rows = o.patches(o.rounded(self.x).to(torch.bfloat16))
            return o.folded(torch.addcmul(o.bias, torch.mm(rows, columns, out_dtype=torch.float32), self.scale))

        return product


def layers(o: Operands) -> Iterator[tuple[str, bool, Callable[[], Product]]]:
    """The same as `products` for whole layers."""
    layer = WholeLayer(o)
    yield "L fp32", False, layer.of_floats
    yield "L fp32 tf32", True, layer.of_floats
    yield "L simulated", False, layer.simulated
    yield "L simulated tf32", True, layer.simulated
    yield "L fp32 codes", False, layer.of_codes
    yield "L tf32 codes", True, layer.of_codes
    yield "L int_mm", False, layer.of_int8
    yield "L bf16 mm", False, layer.of_bfloat16


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TF32 of convolutions and matrix products, as it was afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def eager(product: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of a call among calls in a row."""
    product()
    if device.type == "cpu":
        start = time.perf_counter()
        product()
        return 1000 * (time.perf_counter() - start)
    product()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(9)]
    events[0].record()
    for event in events[1:]:
        product()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))


def captured(product: Product, device: torch.device) -> float:
    """Median milliseconds of a call within a captured graph of five: what the GPU itself takes."""
    if device.type == "cpu":
        return float("nan")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(5):
            product()
    return eager(graph.replay, device) / 5


def difference(product: Product, reference: Tensor | None) -> str:
    """The largest error of sums relative to the largest sum."""
    if reference is None:
        return ""
    y = product()[:REFERENCE].double()
    return f" e{float((y - reference).abs().max() / reference.abs().max()):.0e}"


def cell(o: Operands, make: Callable[[], Product], on: bool, reference: Tensor | None) -> str:
    """Milliseconds in eager mode and within a graph, and the error; or what the operator complains about."""
    try:
        with tf32(on):
            product = make()
            error = difference(product, reference)
            return f"{eager(product, o.device):.3f}/{captured(product, o.device):.4f}{error}"
    except ERRORS as complaint:
        return f"no: {' '.join(str(complaint).split())[:60]}"


UNCOMPARED = ("int_mm", "fp8 (time only)")
"""The first compares its sums itself, zero taken off; the second rounds codes."""


def row(shape: Shape, batch: int, device: torch.device) -> Mapping[str, str]:
    """A cell for every product of one shape at one batch."""
    o = Operands(shape, batch, device)
    reference = o.reference()
    cells = {name: cell(o, make, on, None if name in UNCOMPARED else reference) for name, on, make in products(o)}
    return cells | {name: cell(o, make, on, None) for name, on, make in layers(o)}


def lines(device: torch.device, shapes: Sequence[Shape], batches: Sequence[int]) -> Iterator[str]:
    """The lines of all shapes and batches, as long as there is time."""
    start = time.perf_counter()
    yield "ms eager / ms within a CUDA graph, e: largest error of sums relative to the largest; L: whole layers"
    for batch in batches:
        for shape in shapes:
            if time.perf_counter() - start > SECONDS:
                yield f"out of time: {shape.name} batch {batch}"
                continue
            try:
                cells = row(shape, batch, device)
            except ERRORS as complaint:
                yield f"{shape.name} batch {batch}: {complaint}"
                continue
            yield f"{shape.name} batch {batch}: " + " | ".join(f"{name} {text}" for name, text in cells.items())
    yield f"{time.perf_counter() - start:.1f} s"


def main() -> None:
    """Write the lines to a file and to the terminal."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    shapes, batches = (SHAPES, BATCHES) if device.type == "cuda" else (SHAPES[1:5], (1,))
    text = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {name}\n"
    with torch.inference_mode():
        for line in lines(device, shapes, batches):
            text += line + "\n"
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            if file is not None:
                file.write_text(text)


if __name__ == "__main__":
    main()
