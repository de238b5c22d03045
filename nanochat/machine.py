"""
The name of this machine's processor, as records and banks of noise state it. Two kinds of machine have two names.

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
