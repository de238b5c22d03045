"""Device, dtype, seeding, determinism, peak figures: everything that depends on torch's device."""

import getpass
import os
import shutil
import sys

import torch

from nanochat.common import print0
from nanochat.machine import cpu_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Dense bf16 peak, FLOP/s, by a part of the card's name; the more specific name first. From vendors' data sheets.
PEAK_BF16_FLOPS = (
    ("gb200", 2.5e15), ("b200", 2.25e15), ("b100", 1.8e15), ("h200", 989e12), ("h100 pcie", 756e12),
    ("h100 nvl", 835e12), ("h100", 989e12), ("a100", 312e12), ("a40", 149.7e12), ("a30", 165e12), ("l40s", 362e12),
    ("l4", 121e12), ("5090", 209.5e12), ("4090", 165.2e12), ("3090", 71e12),
)


def select_device(device_type: str = "") -> torch.device:
    """The named device, or the best one of this machine. Raises ValueError for a device that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not device_type:
        device_type = next(name for name in ("cuda", "mps", "cpu") if available[name])
        print0(f"Autodetected device type: {device_type}")
    if not available[device_type]:
        raise ValueError(f"--device-type={device_type}: this machine has {[k for k, v in available.items() if v]}; "
                         "for CUDA check nvidia-smi and that torch is a CUDA build")
    return torch.device(device_type)


def select_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """(compute dtype, why). NANOCHAT_DTYPE decides where `name` is "auto", as upstream has it."""
    source = "--dtype"
    if name == "auto" and "NANOCHAT_DTYPE" in os.environ:
        name, source = os.environ["NANOCHAT_DTYPE"], "NANOCHAT_DTYPE"
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"{source}={name}: expected one of {', '.join(DTYPES)} (float16 needs loss scaling, which "
                             "is not here)")
        return DTYPES[name], f"set by {source}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return torch.bfloat16, f"CUDA SM {major}.{minor}"
        return torch.float32, f"CUDA SM {major}.{minor} has no bfloat16"
    return torch.float32, f"default on {device.type}"


def can_compile(device: torch.device) -> tuple[bool, str]:
    """(whether torch.compile works here, why not). The answer comes from compiling a line of code and running it.

    A compiler alone is not enough: the headers of Python or of C++ may be missing, or the cache may not be writable.
    """
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return False, "Triton is not installed"
    elif not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "cl"))):
        return False, "no C++ compiler found"
    name_the_user()
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as e:
        return False, f"a first line of code could not be built ({reason_of(e)})"
    return True, ""


def name_the_user():
    """Give the user a name where the system has none (docker run --user 4242): torch names its cache by it."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid{os.getuid()}" if hasattr(os, "getuid") else "user"


def reason_of(error: Exception) -> str:
    """The line of a compiler's page that names an error, else its first line.

    >>> reason_of(RuntimeError("C++ compile error\\n\\nCommand:\\ng++ x.cpp\\nx.cpp:1: fatal error: no Python.h"))
    'x.cpp:1: fatal error: no Python.h'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error: " in line.lower()), lines[0])[:200]


def set_determinism(device: torch.device, compiled: bool, asked: bool):
    """Make repeats bit-identical, on CUDA only where asked for.

    Eager code on a CPU needs nothing. Compiled code on a CPU needs torch's deterministic algorithms: without them two
    threads gave five results in five runs.
    """
    if asked or (compiled and device.type == "cpu"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # cumsum has no deterministic CUDA kernel
        torch.utils.deterministic.fill_uninitialized_memory = False
    if device.type == "cuda" and not asked:
        torch.set_float32_matmul_precision("high")


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return cpu_name()


def peak_flops(device: torch.device) -> float:
    """Dense bf16 peak in FLOP/s; infinity for a card not in the table, so that MFU shows 0 instead of a wrong guess."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name().lower()
        for part, flops in PEAK_BF16_FLOPS:
            if all(word in name for word in part.split()):
                return flops
    return float("inf")


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory so far: of the card on CUDA, of the process elsewhere. None where it cannot be read."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 20


def load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
