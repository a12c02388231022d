"""PyTorch: a surrogate's graph as a module, operator by operator ("pytorch") or fused by its compiler ("inductor")."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from minicarlo.engines.base import Array, Engine, Inference, Offer, PrecisionReport, missing_package
from minicarlo.engines.openvino import check_graph
from minicarlo.engines.runtime import has_bf16, machine
from minicarlo.engines.streams import ThreadedGenerator
from minicarlo.errors import InvalidSurrogate
from minicarlo.surrogate import Surrogate

if TYPE_CHECKING:
    import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler talks on standard error, unless told before it is imported

_PRODUCTS = {
    *("addmm", "addmv", "baddbmm", "bmm", "convolution", "linear", "matmul", "mm", "mv"),
    *(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)),
}
"""What PyTorch calls the multiply-accumulates of a layer."""

_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8", "uint8": "int8"}
_COMPILED_PRODUCTS = ("convolution", "addmm", "::mm", "bmm", "linear")


class PyTorchEngine(Engine):
    """PyTorch, one operator after the other."""

    name = "pytorch"
    _fuse = False

    def offers(self) -> list[Offer]:
        """See Engine."""
        return [_offer(self.name, device) for device in ("cpu", "cuda", "xpu")]

    def compile(
        self, surrogate: Surrogate, precision: str, *, device: str, batch: int | None, streams: int, threads: int
    ) -> PyTorchGenerator:
        """See Engine. That FP32 is FP32 is asserted."""
        check_graph(surrogate, surrogate.onnx)
        compiled = PyTorchGenerator(
            surrogate.onnx,
            precision,
            where=f"Surrogate {surrogate.path}",
            batch=batch,
            streams=streams,
            threads=threads,
            device=device,
            fuse=self._fuse,
        )
        if precision == "fp32":
            compiled.assert_precision("fp32")
        return compiled


class InductorEngine(PyTorchEngine):
    """PyTorch's compiler, which needs that of C++."""

    name = "inductor"
    compiles_quickly = False
    _fuse = True


class PyTorchGenerator(ThreadedGenerator):
    """A graph that PyTorch runs, in fp32, or in bf16 by autocast: products and convolutions, the rest as PyTorch thinks right.

    Inferences block, so that each stream has a Python thread. How many threads PyTorch itself uses is a property of the process:
    the streams set it to `threads`.
    """

    def __init__(
        self,
        onnx: bytes,
        precision: str = "fp32",
        *,
        where: str = "The graph",
        batch: int | None = None,
        streams: int = 1,
        threads: int = 1,
        device: str = "cpu",
        fuse: bool = False,
    ) -> None:
        import torch

        from minicarlo.engines.torch_graph import TorchGraph

        super().__init__(batch, streams, threads)
        self._device, self._bf16, self._fused = device, precision == "bf16", fuse
        self._module = TorchGraph(onnx, where).to(device).eval()
        self._compute: Any = torch.compile(self._module, dynamic=batch is None) if fuse else self._module
        inputs = {name: torch.ones((batch or 2, length), device=device) for name, length in self._module.input_sizes.items()}
        try:
            self._ran, samples = self._profiled(inputs) if fuse else self._dispatched(inputs)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise InvalidSurrogate(f"{where}: PyTorch cannot run its graph ({reason}). Choose another engine.") from error
        self.sample_shape = tuple(samples.shape[1:])

    def inference(self) -> Inference:
        """See CompiledGenerator. PyTorch's operators allocate what is between them."""
        return PyTorchInference(self, self.batch or 1, self._module.input_sizes["latent"])

    def precision_report(self) -> PrecisionReport:
        """See CompiledGenerator: the types of the numbers that PyTorch's dispatcher, or profiler, saw each product compute with.

        Compiled graphs have no layers any more: they are reported only when all their products computed in one format.
        """
        return dict(self._ran)

    def compute(self, latent: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """Samples on the device, from what lies on the processor, in the calling thread."""
        with self._context():
            samples: torch.Tensor = self._compute(latent=latent.to(self._device), incident_energy=energy.to(self._device))
        return samples

    def _begin(self) -> None:
        import torch

        torch.set_num_threads(self.threads)

    def _infer(self, latent: Array, energy: Array) -> Array:
        import torch

        samples: Array = self.compute(torch.from_numpy(latent), torch.from_numpy(energy)).to("cpu", torch.float32).numpy()
        return samples

    @contextmanager
    def _context(self) -> Iterator[None]:
        import torch

        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._bf16:
                stack.enter_context(torch.autocast(self._device, torch.bfloat16))
            if self._device == "cuda":  # FP32 is FP32: cuDNN's default is TF32, which has ten bits of mantissa
                stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
            yield

    def _dispatched(self, inputs: dict[str, torch.Tensor]) -> tuple[PrecisionReport, torch.Tensor]:
        """The formats that products ran in, and the samples, of one inference that PyTorch's dispatcher shows."""
        from torch.utils._python_dispatch import TorchDispatchMode

        report: PrecisionReport = {}
        module = self._module

        class Watch(TorchDispatchMode):
            layer = ""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
                if func.overloadpacket.__name__ in _PRODUCTS and self.layer in module.layers:
                    kind = str(args[1].dtype).removeprefix("torch.")
                    report[self.layer] = _FORMATS.get(kind, kind)
                return func(*args, **(kwargs or {}))

        watch = Watch()  # type: ignore[no-untyped-call]
        module.entered = lambda name: setattr(watch, "layer", name)
        try:
            with self._context(), watch:
                samples = module(**inputs)
        finally:
            module.entered = None
        return {name: report[name] for name in module.layers if name in report}, samples

    def _profiled(self, inputs: dict[str, torch.Tensor]) -> tuple[PrecisionReport, torch.Tensor]:
        """The same, of one inference that PyTorch's profiler shows."""
        from torch.profiler import ProfilerActivity, profile

        with self._context():
            self._compute(**inputs)  # compiles
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
                samples: torch.Tensor = self._compute(**inputs)
        events = profiler.profiler.kineto_results.events()
        kinds = {
            next((kind for kind in event.dtypes() if kind in ("float", "c10::BFloat16", "c10::Half")), "")
            for event in events
            if any(part in event.name() for part in _COMPILED_PRODUCTS)
        } - {""}
        names = {"float": "fp32", "c10::BFloat16": "bf16", "c10::Half": "fp16"}
        return dict.fromkeys(self._module.layers, names[kinds.pop()]) if len(kinds) == 1 else {}, samples


class PyTorchInference(Inference):
    """Tensors that share NumPy's memory."""

    def __init__(self, generator: PyTorchGenerator, batch: int, latent_size: int) -> None:
        import torch

        super().__init__(batch, latent_size, generator.sample_shape)
        self._generator = generator
        self._inputs = torch.from_numpy(self.latent), torch.from_numpy(self.incident_energy)
        self._output = torch.from_numpy(self.samples)
        torch.set_num_threads(generator.threads)

    def __call__(self) -> Array:
        self._output.copy_(self._generator.compute(*self._inputs))
        return self._samples


@cache
def _offer(engine: str, device: str) -> Offer:
    if find_spec("torch") is None:
        return Offer(engine, None, device, None, (), missing_package("pytorch"))
    import torch

    def refusal(reason: str) -> Offer:
        return Offer(engine, torch.__version__, device, None, (), reason)

    if device != "cpu" and not getattr(torch, device).is_available():
        built = {"cuda": torch.version.cuda, "xpu": getattr(torch.version, "xpu", None)}[device]
        return refusal("PyTorch finds no such device, or not its driver" if built else f"this build of PyTorch has no {device}")
    if engine == "inductor" and device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return refusal("it needs a C++ compiler, and there is none (CXX, g++ or clang++)")
    if device == "cpu":
        formats = ("fp32", "bf16") if has_bf16() else ("fp32",)
        return Offer(engine, torch.__version__, device, machine()["processor"], formats)
    hardware = getattr(torch, device).get_device_name()
    return Offer(engine, torch.__version__, device, hardware, ("fp32", "bf16"))
