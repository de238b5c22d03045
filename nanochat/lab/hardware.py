"""
The hardware of this machine, without torch.

A process of its own asks torch for it: the lab never imports torch, and a parent that holds a CUDA context would take
memory from the cells that it measures.
"""

import os
import subprocess
import sys

from nanochat.common import child_environment
from nanochat.machine import cpu_name

_ASK_TORCH = "import torch\nif torch.cuda.is_available(): print(torch.cuda.get_device_properties(0).total_memory >> 20)"
_ASK_MPS = "import torch\nprint(torch.backends.mps.is_available())"


def cuda_memory_mib() -> int | None:
    """Memory of the first CUDA device that torch can use; None without one."""
    if "CUDA_VISIBLE_DEVICES" in os.environ and not os.environ["CUDA_VISIBLE_DEVICES"].strip():
        return None
    try:  # takes a second; torch needs several to find no device
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    answer = _ask_torch(_ASK_TORCH)
    return int(answer) if answer.isdigit() else None


def has_mps() -> bool:
    """Whether torch can use the GPU of a Mac."""
    if sys.platform != "darwin":
        return False
    return _ask_torch(_ASK_MPS) == "True"


def _ask_torch(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", errors="replace",
                          env=child_environment()).stdout.strip()


def machine_name(device_type: str) -> str:
    """The device as records name it, because a noise bank belongs to one machine. Empty where it cannot be known
    beforehand."""
    if device_type in ("cpu", "mps"):  # the GPU of a Mac is part of its processor
        return cpu_name()
    try:
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                               encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return names.splitlines()[0].strip() if names.strip() else ""
