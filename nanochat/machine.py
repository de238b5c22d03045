"""
The name of this machine's processor, and the cores that a process may use.

Records and banks of noise state the name. Two kinds of machine have two names:

    AMD EPYC | Apple M2 Pro | Raspberry Pi 5 Model B Rev 1.0, ARM 0x41/0xd0b, 4 cores

Python's platform.processor() is no such name: it says "arm" on every Mac, and nothing or "aarch64" on ARM under Linux.
A bank belongs to one machine, so all Macs would share one. Torch-free.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

BOARD_FILES = ("proc/device-tree/model", "sys/class/dmi/id/product_name")  # a small board, a server or virtual machine


def cpu_name(system: str | None = None, root: Path = Path("/")) -> str:
    """The model of the processor. system: as platform.system() says it. root: where /proc and /sys are."""
    read = {"Linux": lambda: _linux_name(root), "Darwin": _mac_name, "Windows": _windows_name}.get(
        system or platform.system(), lambda: "")
    try:
        found = read()
    except OSError:
        found = ""
    return found or f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _linux_name(root: Path) -> str:
    """The model name of an x86 processor. ARM's /proc/cpuinfo has numbers instead: the board and cores complete it."""
    text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    fields = re.findall(r"^([^\t:\n]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    first = dict(reversed(fields))
    makers = [value for name, value in fields if name == "CPU implementer"]
    if not makers:
        return first.get("model name", "")
    parts = [value for name, value in fields if name == "CPU part"]
    kinds = sorted({f"{maker}/{part}" for maker, part in zip(makers, parts)})  # large and small cores differ
    board = first.get("Model") or _board(root) or first.get("Hardware")
    return ", ".join([*([board] if board else []), f"ARM {' '.join(kinds)}", f"{len(makers)} cores"])


def _board(root: Path) -> str:
    for name in BOARD_FILES:
        try:
            if board := (root / name).read_text(encoding="utf-8", errors="replace").strip("\0\n "):
                return board
        except OSError:
            continue
    return ""


def _mac_name() -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True)
    return done.stdout.decode("utf-8", "replace").strip()


def _windows_name() -> str:
    import winreg
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
        return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()


# -----------------------------------------------------------------------------
# Cores

def usable_cores() -> int:
    """Number of cores that this process may use, at least 1.

    os.cpu_count counts all cores of the machine. A process may have fewer: by its affinity (taskset, a cpuset), or by
    the quota of its control group, as in `docker run --cpus=2`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_cores(mounted="/sys/fs/cgroup", mine="/proc/self/cgroup") -> float | None:
    """Smallest quota, in cores, of this process's control groups (Linux, versions 1 and 2); None without one."""
    try:
        groups = [line.split(":", 2) for line in Path(mine).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = Path(mounted, "cpu") if controllers else Path(mounted)
        folder = top / path.strip("/")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for place in (folder, *(parent for parent in folder.parents if parent == top or top in parent.parents)):
            quotas += _quota(place, *files)
    return min(quotas, default=None)


def _quota(folder, *names) -> list[float]:
    """[microseconds of work / microseconds], as the files of one control group say it; [] where they limit nothing."""
    try:
        work, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        return [int(work) / int(period)] if int(work) > 0 else []
    except (OSError, ValueError):  # no such file, or "max"
        return []
