"""Would it run on a GPU, and would the host ever wait there? Asked on a machine that has no GPU.

Tensors on the device are fake, as of ``FakeTensorMode``: they have shape, type and device, but no values, and no kernel
runs. Tensors on the host are real. What the host reads from the device is made up: floats are ``read``, integers count
from 0, booleans are true. Every such read, and every copy for which the host would wait, is recorded with the lines that
caused it; what mixes devices raises, as it does on a GPU. It cannot see how long anything takes, memory, streams, or what a kernel
does: launches are operations, not kernels. ``test_gpu.py`` holds the methods and the trainer to it.

Written for PyTorch 2.15; it stands in for parts of it that are not public.
"""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types as _foreach_types_of_optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _foreach_supported_types as _foreach_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from sam_repro.measure.footprint import launches

BEHIND = 100  # operations that the device is behind the host: more than a base optimizer's, fewer than a step's
CUDA, META = torch.device("cuda:0"), torch.device("meta")
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# What waits in its CUDA kernel without a tag that says so.
WAITING = {"multinomial", "histc", "linalg_eig", "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "_linalg_check_errors", "_ctc_loss"}
NAMES = {"_local_scalar_dense": "item", "_unique2": "unique"}
# They write into their arguments and fake tensors do not know them; a fused optimizer's counts one.
IN_PLACE = {"_fused_sgd_", "_fused_adamw_", "_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"}
SAME_DEVICE = {"cat", "stack", "index_select", "gather", "scatter", "index_add_", "index_copy_", "_index_put_impl_"}
LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(torch.__file__).parent), "<")
WRAPPERS = ("_dynamo", "_compile.py", "_python_dispatch.py", "overrides.py")


@dataclass(frozen=True)
class Wait:
    """One wait of the host: the operation, the project's lines from the innermost outwards, the library's line in between."""

    op: str
    stack: tuple[str, ...]
    inside: str

    def __str__(self) -> str:
        return f"{self.op:<18} {' < '.join(self.stack[:2])}{f'  (in {self.inside})' if self.inside else ''}"


@dataclass
class Report:
    """What was seen: the host's waits, and the operations that would launch kernels (``_foreach_`` ones on the fast path count one)."""

    waits: list[Wait] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    launched: int = 0  # in all, also before ``take``

    @property
    def total(self) -> int:
        """Launches."""
        return self.launches.total()

    def wait(self, op: str) -> None:
        """Record a wait, with the lines of the caller."""
        stack: list[str] = []
        inside, frame = "", sys._getframe().f_back
        while frame is not None:
            code, line = frame.f_code, frame.f_lineno
            if code.co_filename.startswith(LIBRARIES):
                if not stack and not inside and "torch" in code.co_filename and not any(part in code.co_filename for part in WRAPPERS):
                    inside = f"{_short(code.co_filename)}:{line}"
            elif code.co_filename != __file__ or not code.co_qualname.startswith(("Report.", "_", "pretended_gpu.")):
                stack.append(f"{_short(code.co_filename)}:{line} {code.co_name}")
            frame = frame.f_back
        self.waits.append(Wait(op, tuple(stack), inside))

    def launch(self, name: str, count: int = 1) -> None:
        """Record operations on the device."""
        self.launches[name] += count
        self.launched += count

    def take(self) -> Report:
        """What was seen since the last call."""
        taken = Report(self.waits, self.launches)
        self.waits, self.launches = [], Counter()
        return taken


def _short(file: str) -> str:
    parts = Path(file).parts
    root = next((place for place in range(len(parts) - 1, 0, -1) if parts[place] in ("torch", "sam_repro")), len(parts) - 1)
    return "/".join(parts[root:])


class _Fake(FakeTensorMode):
    """To C++ a fake tensor lies on ``meta``: of one on ``cuda`` the autograd engine would ask the driver for the stream."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; what C++ makes beside such a tensor belongs on the device, too."""
        if func is torch.ops.prim.device.default:
            return META
        kwargs = dict(kwargs or {})
        return super().dispatch(func, types, args, kwargs | {"device": CUDA} if kwargs.get("device") == META else kwargs)


class _Device(TorchDispatchMode):
    """Runs the host's operations, records the device's, and stands between the two."""

    def __init__(self, report: Report, read: Callable[[], float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.report, self.read = report, read
        self.fake = _Fake(allow_non_fake_inputs=True)
        self.autocast = False  # at the last call from Python; an operation that casts switches it off
        self.asked: set[int] = set()  # tensors that it has asked about in the meantime
        self.fresh: set[int] = set()  # tensors that autograd is about to ask about

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return self._where(args[0])
        result = self._run(func, args, dict(kwargs or {}))
        if self._casting:
            recorded = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(args))
            kept = self.asked if func is torch.ops.aten._to_copy.default else self.fresh if recorded else set()
            kept.update(id(t) for t in tree_leaves(result))
        return result

    @property
    def _casting(self) -> bool:
        return self.autocast and not torch.is_autocast_enabled("cuda")

    def _where(self, tensor: Tensor) -> torch.device:
        """Where C++ is told that a tensor is: an operation that casts asks once of each argument, and casts what is on the device."""
        if id(tensor) in self.fresh:  # it is autograd that asks
            self.fresh.remove(id(tensor))
        elif self._casting and id(tensor) not in self.asked:
            self.asked.add(id(tensor))
            return CUDA
        return META

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func._schema.name.partition("::")[2]
        if kwargs.get("device") == META:  # PyTorch's C++ side takes the device of a fake tensor for this one
            kwargs["device"] = CUDA
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = [t for t in tensors if not isinstance(t, FakeTensor)]
        if len(here) == len(tensors) and torch.device(kwargs.get("device") or "cpu").type != "cuda":
            return func(*args, **kwargs)
        if name == "_to_copy" and (here or kwargs.get("device") == torch.device("cpu")):
            return self._moved(func, *args, **kwargs)
        if name == "copy_" and here:
            return self._copied(*args, **kwargs)
        if name == "_foreach_copy_" and here:
            return [self._copied(to, source, *args[2:], **kwargs) for to, source in zip(*args[:2], strict=True)] and None
        masks = False
        if "index" in name and isinstance(args[1], list | tuple):
            masks = name == "index" and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            args = self._indexed(name, args)
        self._refuse_mixtures(func, name, args, here)
        if func._schema.is_mutable:
            tree_map_only(FakeTensor, lambda t: t.__dict__.pop("known", None), args)
        self._count(func, args)
        if name in IN_PLACE:
            return args[0] if func._schema.returns else None
        reads = bool(READS & set(func.tags)) and "index" not in name and kwargs.get("output_size") is None
        if reads or name in WAITING or (name == "segment_reduce" and not kwargs.get("unsafe")):
            self.report.wait(NAMES.get(name, name))
        if reads or masks:  # the shape or the value is what the device says
            return self._on_device(func(*self._on_host(args), **self._on_host(kwargs)))
        with self.fake:
            result = func(*args, **kwargs)
            if name == "convolution_backward":  # laid out as input and weights are, which the fake ones are not
                result = (*(g if g is None else torch.empty_like(like) for g, like in zip(result, args[1:3], strict=False)), result[2])
            return result

    def _moved(self, func: Any, tensor: Tensor, *, device: torch.device, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        """A copy of a tensor on the other side. Nobody waits for one to the host with ``non_blocking``: its memory is pinned."""
        up = device.type == "cuda"
        if not non_blocking:
            self.report.wait(f"copy to the {'device' if up else 'host'}")
        self.report.launch("_to_copy")
        if not up:
            return func(self._on_host(tensor), **kwargs)
        with self.fake:
            moved = func(self._on_device(tensor), **kwargs)
        moved.known = tensor  # it comes back as it was, such as the state of a generator
        return moved

    def _copied(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """``to.copy_(source)`` from one side to the other."""
        up = isinstance(to, FakeTensor)
        if not non_blocking or not (up or getattr(to, "pinned", False)):
            self.report.wait(f"copy to the {'device' if up else 'host'}")
        self.report.launch("copy_")
        if not up:
            return to.copy_(self._on_host(source))
        with self.fake:
            return to.copy_(source)

    def _indexed(self, name: str, args: Any) -> Any:
        """The arguments with their indices on the device; a list in the brackets has become a tensor on ``meta``."""
        indices = list(args[1])
        for place, index in enumerate(indices):
            if index is None or isinstance(index, FakeTensor):
                masks = index is not None and index.dtype in (torch.bool, torch.uint8)
                alone = "put" in name and args[2].numel() == 1 and sum(i is not None for i in indices) == 1  # that is masked_fill
                if masks and not alone:
                    self.report.wait(f"{name} with a mask")
            elif isinstance(args[0], FakeTensor):
                self.report.wait("index from the host")
                indices[place] = self._on_device(index)
        if "put" in name and not isinstance(args[2], FakeTensor) and args[2].ndim == 0:
            self.report.wait("copy to the device")
        return (args[0], indices, *args[2:])

    def _refuse_mixtures(self, func: Any, name: str, args: Any, here: list[Tensor]) -> None:
        """What PyTorch's fake tensors let pass and a GPU does not."""
        first = next((a for a in tree_leaves(args) if isinstance(a, Tensor)), None)
        indexed_here = "index" in name and isinstance(args[1], list | tuple) and not isinstance(args[0], FakeTensor)
        if here and (indexed_here or name in SAME_DEVICE or (func._schema.is_mutable and not isinstance(first, FakeTensor))):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu")

    def _count(self, func: Any, args: Any) -> None:
        name, count = launches(func, args)
        if count:
            self.report.launch(name, count)

    def _on_host(self, values: Any) -> Any:
        """The values with something made up for what is on the device."""

        def made_up(t: FakeTensor) -> Tensor:
            if (known := getattr(t, "known", None)) is not None:
                return known.detach().to(t.dtype, copy=True)
            if t.dtype.is_floating_point:
                return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).fill_(self.read())
            return torch.ones(t.shape, dtype=t.dtype) if t.dtype == torch.bool else torch.arange(t.numel()).to(t.dtype).view(t.shape)

        with torch.no_grad():
            return tree_map_only(FakeTensor, made_up, values)

    def _on_device(self, values: Any) -> Any:
        def empty(t: Tensor) -> Tensor:
            return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=CUDA)

        with self.fake:
            return tree_map_only(Tensor, empty, values)


class _Calls(TorchFunctionMode):
    """Gives the device its number, which C++ would ask the driver for, and does what it would do wrong with a fake tensor."""

    def __init__(self, device: _Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.device.autocast = torch.is_autocast_enabled("cuda")
        self.device.asked.clear()
        self.device.fresh.clear()
        args, kwargs = tree_map(_numbered, (args, dict(kwargs or {})))
        name, fake = getattr(func, "__name__", ""), bool(args) and isinstance(args[0], FakeTensor)
        if name == "cuda":
            name, func, args, kwargs = "to", Tensor.to, (args[0], CUDA), {}
        if fake and name == "to":  # to where it is: no copy
            args = (args[0], *(a for a in args[1:] if not _is_cuda(a)))
            kwargs = {key: value for key, value in kwargs.items() if not _is_cuda(value)}
            if len(args) == 1 and not kwargs.keys() - {"non_blocking"}:
                return args[0]
        elif name == "pin_memory":
            return _pinned(args[0])
        elif fake and name == "new_tensor":
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, "device": CUDA, **kwargs})
        elif fake and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(result, Tensor) and result.device.type != generator.device.type:
            raise RuntimeError(f"Expected a '{result.device.type}' device type for generator but found '{generator.device.type}'")
        return result


def _is_cuda(value: Any) -> bool:
    return isinstance(value, torch.device) and value == CUDA


def _pinned(tensor: Tensor) -> Tensor:
    made: Any = tensor.clone()
    made.pinned = True
    return made


def _numbered(value: Any) -> Any:
    return CUDA if isinstance(value, str | torch.device) and str(value) in ("cuda", "cuda:0") else value


class _Generator(torch.Generator):
    """A generator that says it is on the device."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        """On the host, in truth."""
        made: Any = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.said = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return self.__dict__["said"]


@contextmanager
def pretended_gpu(read: float | Callable[[], float] = 1.0) -> Iterator[Report]:
    """While this lasts there is one GPU, so the code believes. ``read``: the number that the host finds in a tensor there."""
    if torch.cuda.is_available():
        raise RuntimeError("There is a GPU: use torch.cuda.set_sync_debug_mode.")
    report = Report()
    device = _Device(report, read if callable(read) else lambda: read)  # it imports what must not see the patches
    lifted = torch._C._only_lift_cpu_tensors()
    grouped, save, load = torch._C._group_tensors_by_device_and_dtype, torch.save, torch.load

    def group(*args: Any) -> dict[Any, Any]:
        return {(CUDA if device == META else device, dtype): value for (device, dtype), value in grouped(*args).items()}

    def to_file(state: Any, file: Any, **_: Any) -> None:
        places = [t.device.type for t in tree_leaves(state) if isinstance(t, Tensor)]
        save((tree_map_only(FakeTensor, Tensor.cpu, state), places), file)

    def from_file(file: Any, map_location: Any = None, **_: Any) -> Any:
        state, places = load(file, weights_only=True)
        wanted = iter(places)
        return tree_map_only(Tensor, lambda t: t.to(map_location or next(wanted)), state)

    def set_state(state: Tensor, *_: Any) -> None:
        if state.device.type != "cpu" or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")

    class Event:
        """Of a stream: the device has come past it once ``BEHIND`` more operations are launched; who waits earlier, waits."""

        at = 0
        __init__ = lambda *_, **__: None  # noqa: E731
        wait = lambda *_: None  # noqa: E731
        elapsed_time = lambda *_: 1.0  # noqa: E731

        def record(self, *_: Any) -> None:
            """Here the device is to come past."""
            self.at = report.launched

        def query(self) -> bool:
            """Whether it has."""
            return report.launched - self.at >= BEHIND

        def synchronize(self) -> None:
            """Where the host waits."""
            report.wait("Event.synchronize")

    class Stream(Event):
        """The one stream there is."""

        wait_stream = wait_event = lambda *_: None
        is_capturing = lambda *_: False  # noqa: E731
        record_event = lambda *_: Event()  # noqa: E731

    card = SimpleNamespace(name="a pretended GPU", total_memory=80 << 30, L2_cache_size=50 << 20, multi_processor_count=132)
    fixed = {
        **dict.fromkeys("_lazy_init _lazy_call set_device manual_seed manual_seed_all empty_cache reset_peak_memory_stats".split()),
        **dict.fromkeys("is_available is_initialized is_bf16_supported".split(), True),
        **dict.fromkeys("current_device memory_allocated max_memory_allocated".split(), 0),
        **dict.fromkeys(("current_stream", "default_stream"), Stream()),
        **dict.fromkeys(("stream", "device"), nullcontext()),
        "device_count": 1,
        "is_current_stream_capturing": False,
        "get_device_name": card.name,
        "get_device_capability": (9, 0),
        "get_device_properties": card,
    }
    called: dict[str, Any] = {name: (lambda *_, value=value, **__: value) for name, value in fixed.items()}
    called |= {"Event": Event, "Stream": Stream, "set_rng_state": set_state}
    called |= {"get_rng_state": lambda *_: torch.get_rng_state(), "synchronize": lambda *_: report.wait("torch.cuda.synchronize")}
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor|.*lr_scheduler.step")
        for name, stand_in in called.items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        for owner, name, stand_in in (
            (torch, "Generator", _Generator),
            (torch, "save", to_file),
            (torch, "load", from_file),
            (torch.accelerator, "current_stream", called["current_stream"]),
            (torch.accelerator, "synchronize", called["synchronize"]),
            (torch._C, "_group_tensors_by_device_and_dtype", group),
            (FakeTensor, "is_cuda", property(lambda t: t.fake_device.type == "cuda")),
            (FakeTensor, "is_cpu", property(lambda t: t.fake_device.type == "cpu")),
            (FakeTensor, "is_meta", False),
            (FakeTensor, "get_device", lambda _: 0),
            (FakeTensor, "tolist", lambda t: t.cpu().tolist()),
        ):
            stack.enter_context(patch.object(owner, name, stand_in))
        for kind in (_foreach_types, _foreach_types_of_optimizers):
            kind.append(FakeTensor)
            stack.callback(kind.remove, FakeTensor)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=): made on the host, then copied
        stack.enter_context(device)
        stack.enter_context(_Calls(device))
        yield report
