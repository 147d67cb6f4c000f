"""A pretend accelerator: torch's device "pretend", whose memory the host cannot touch.

`start()` builds it where it is not yet built, and makes it this process's device. That cannot be undone: torch takes
one such device in a process, so tests that need it run in a process of their own. What it can do is in pretend.cpp.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

SOURCE = Path(__file__).with_name("pretend.cpp")
OLDEST_TORCH = (2, 13)  # the first whose headers the source was built with; torch promises none of them to backends

# Numbers that the source names in the same order.
_LIMIT, _FAIL_IN, _FORBIDDEN, _FIXED_DATA, _LIVE, _PEAK, _ALLOCATIONS, _FAILURES = range(8)
_PLENTY = 8 << 30
# torch's numbers of scalar types, which Python does not have.
_TYPES = {
    torch.uint8: 0,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bool: 11,
    torch.bfloat16: 15,
    torch.float8_e5m2: 23,
    torch.float8_e4m3fn: 24,
}
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)


def why_not() -> str | None:
    """Return why the device cannot be had on this machine, or None where it can."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not sys.platform.startswith("linux"):
        return "the pretend accelerator maps memory as only Linux does"
    if version < OLDEST_TORCH:
        return f"the pretend accelerator needs torch {'.'.join(map(str, OLDEST_TORCH))}"
    if shutil.which("g++") is None:
        return "the pretend accelerator is built with g++, and there is none"
    return None


def build() -> Path:
    """Return the library, built from the source by g++ unless it was before, with this torch: about 15 s."""
    root = Path(torch.__file__).parent
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {root}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-runtime"
    library = folder / f"pretend-{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as here:  # a rename is whole or not at all
        made = Path(here) / library.name
        includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        libraries = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        options = ["-shared", "-fPIC", "-std=c++20", "-O1", "-w", abi, *includes]
        subprocess.run(["g++", *options, str(SOURCE), "-o", str(made), *libraries], check=True)
        made.replace(library)
    return library


@dataclass
class Log:
    """What the device was asked for: "kernel", "h2d", "d2h", "d2d" (with " async" where nobody waits), "sync"."""

    kinds: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    ours: Counter[str] = field(default_factory=Counter)  # of `kinds`, what the product asked for
    lines: Counter[str] = field(default_factory=Counter)  # the product's copies and waits: "sync merge.py:207 _norm"


class Pretend:
    """The device, and what tests do to it."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self._native = ctypes.CDLL(str(library))
        self._native.pretend_get.restype = ctypes.c_int64
        self._native.pretend_set.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._native.pretend_start()
        self._lacking: set[str] = set()
        self.device = torch.device("privateuseone:0")  # which `start` renames

    def reset(self) -> None:
        """Take back all that tests have set."""
        self.limit(_PLENTY)
        self.fail_in(-1)
        self.forbid()
        self.fix_data(False)
        for operation in list(self._lacking):
            self._native.pretend_lack(operation.encode(), 0)
        self._lacking.clear()
        self._native.pretend_log(_CALLBACK(0))

    # ---- what to set ------------------------------------------------------------------------------------------------

    def limit(self, size: int) -> None:
        """Let the device have this many bytes."""
        self._native.pretend_set(_LIMIT, size)

    def fail_in(self, count: int, times: int = 1) -> None:
        """Let so many allocations in a row fail after `count` that do not; -1: none."""
        self._native.pretend_set(_FAILURES, times)
        self._native.pretend_set(_FAIL_IN, count)

    def forbid(self, *dtypes: torch.dtype) -> None:
        """Let the device refuse these dtypes and no others."""
        self._native.pretend_set(_FORBIDDEN, sum(1 << _TYPES[dtype] for dtype in dtypes))

    def fix_data(self, fixed: bool) -> None:
        """Let `.data` of a tensor stay on its device, as that of XLA does: `.to()` makes new Parameters then."""
        self._native.pretend_set(_FIXED_DATA, fixed)

    def lack(self, *operations: str) -> None:
        """Let the device not have these operations, such as "aten::linalg_qr"."""
        for operation in operations:
            self._native.pretend_lack(operation.encode(), 1)
            self._lacking.add(operation)

    # ---- what to look at --------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """The bytes that are taken now."""
        return int(self._native.pretend_get(_LIVE))

    @property
    def allocations(self) -> int:
        """How often memory was taken."""
        return int(self._native.pretend_get(_ALLOCATIONS))

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Give what returns the most bytes that were taken at once since the block began, beyond those taken then."""
        before = self.used
        self._native.pretend_set(_PEAK, before)
        yield lambda: int(self._native.pretend_get(_PEAK)) - before

    @contextmanager
    def logged(self) -> Iterator[Log]:
        """Give a log of kernels, copies and waits within the block."""
        log = Log()

        def note(kind: bytes, _: bytes, size: int) -> None:
            name = kind.decode()
            log.kinds[name] += 1
            log.bytes[name] += size
            frame = _product_frame(sys._getframe(1))
            if frame is not None:
                log.ours[name] += 1
                if name not in ("kernel", "d2d"):
                    code = frame.f_code
                    log.lines[f"{name} {Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"] += 1

        callback = _CALLBACK(note)
        self._native.pretend_log(callback)
        try:
            yield log
        finally:
            self._native.pretend_log(_CALLBACK(0))

    def module(self) -> ModuleType:
        """Return what torch has as `torch.pretend`."""
        module: Any = ModuleType("torch.pretend")
        module.is_available = module.is_initialized = lambda: True
        module.device_count = lambda: 1
        module.current_device = lambda: 0
        module.set_device = lambda index: None
        module.manual_seed = module.manual_seed_all = lambda seed: None
        module._is_in_bad_fork = lambda: False
        module.get_rng_state = lambda *device: torch.get_rng_state()
        module.set_rng_state = lambda *state: None
        module.synchronize = module.empty_cache = lambda *device: None
        module.mem_get_info = lambda *device: (self._number(_LIMIT) - self.used, self._number(_LIMIT))
        module.memory_allocated = module.memory_reserved = lambda *device: self.used
        module.max_memory_allocated = lambda *device: self._number(_PEAK)
        module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
        return module

    def _number(self, place: int) -> int:
        return int(self._native.pretend_get(place))


def _product_frame(frame: FrameType) -> FrameType | None:
    """Return the innermost frame of the product, or None where a host's own code asks."""
    return next((found for found, _ in traceback.walk_stack(frame) if _is_product(found.f_code.co_filename)), None)


@cache  # a step asks for thousands of kernels, from deep stacks
def _is_product(filename: str) -> bool:
    parts = Path(filename).parts
    return "lora_runtime" in parts and "demo" not in parts


def start() -> Pretend:
    """Make "pretend" torch's device in this process, and return it."""
    pretend = Pretend(build())
    module = pretend.module()
    torch.utils.rename_privateuse1_backend("pretend")
    torch._register_device_module("pretend", module)
    sys.modules["torch.pretend"] = module
    return pretend
