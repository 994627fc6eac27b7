"""How PyTorch's libraries compute, which is the same for a whole process: set while a run trains, and put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..config import CUDA_ONLY
from ..schema import UserError

FLAGS = ("tf32", "cudnn_benchmark", "deterministic", "channels_last", "compile")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may not add up in the same order
MISSING = " does not have a deterministic implementation"


@contextmanager
def backends(config: dict[str, Any]) -> Iterator[None]:
    """``tf32``, ``cudnn_benchmark`` and ``deterministic`` of the configuration hold while this lasts.

    Raises UserError where ``deterministic`` asks for what an operation cannot do on its device.
    """
    parts: Any = torch.backends  # torch does not declare the parts of cudnn
    precision = "tf32" if config["tf32"] else "ieee"
    wanted: list[tuple[Any, str, Any]] = [
        (part, "fp32_precision", precision) for part in (parts.cuda.matmul, parts.cudnn.conv, parts.cudnn.rnn)
    ]
    wanted.append((parts.cudnn, "benchmark", config["cudnn_benchmark"] and not config["deterministic"]))
    with ExitStack() as stack:
        for owner, name, value in wanted:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        before = torch.are_deterministic_algorithms_enabled()
        if before != config["deterministic"]:  # the call alone imports the compiler, which takes seconds
            stack.callback(torch.use_deterministic_algorithms, before)
            torch.use_deterministic_algorithms(config["deterministic"])
        if config["deterministic"] and WORKSPACE not in os.environ:
            os.environ[WORKSPACE] = ":4096:8"
            stack.callback(os.environ.pop, WORKSPACE, None)
        try:
            yield
        except RuntimeError as error:
            if MISSING not in str(error):
                raise
            operation = str(error).partition(MISSING)[0]
            raise UserError(
                f"deterministic=true: PyTorch's {operation} cannot; choose what does without it, or deterministic=false."
            ) from error


def in_force(config: dict[str, Any]) -> dict[str, Any]:
    """What a summary says of them; None for those of CUDA alone where a run is elsewhere."""
    elsewhere = not config["device"].startswith("cuda")
    return {key: None if key in CUDA_ONLY and elsewhere else config[key] for key in FLAGS}
