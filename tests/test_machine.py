"""
Names of processors, from made-up files and commands: two kinds of machine never have one name.

python -m pytest tests/test_machine.py -q
"""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nanochat import machine
from nanochat.lab import hardware
from nanochat.machine import cpu_name

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model\t\t: 17
model name\t: AMD EPYC 7763 64-Core Processor
processor\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
"""
CORE = """\
processor\t: {}
BogoMIPS\t: 108.00
CPU implementer\t: {}
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: {}
CPU revision\t: 1

"""
RASPBERRY = "".join(CORE.format(i, "0x41", "0xd0b") for i in range(4))


def make_files(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


def test_x86_is_named_as_its_records_always_were(tmp_path):
    """Banks match by the name, so the name of a machine that has one must not change."""
    assert cpu_name("Linux", make_files(tmp_path, {"proc/cpuinfo": EPYC})) == "AMD EPYC 7763 64-Core Processor"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux")
def test_this_machine_has_the_name_that_the_first_line_gives():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if not names or any(line.startswith("CPU implementer") for line in lines):
        pytest.skip("no x86")
    assert cpu_name() == names[0]


@pytest.mark.parametrize("files, name", [
    ({"proc/cpuinfo": RASPBERRY + "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"},
     "Raspberry Pi 5 Model B Rev 1.0, ARM 0x41/0xd0b, 4 cores"),
    ({"proc/cpuinfo": RASPBERRY, "proc/device-tree/model": "Radxa ROCK 5B\0"},
     "Radxa ROCK 5B, ARM 0x41/0xd0b, 4 cores"),
    ({"proc/cpuinfo": RASPBERRY, "sys/class/dmi/id/product_name": "c7g.xlarge\n"},
     "c7g.xlarge, ARM 0x41/0xd0b, 4 cores"),
    ({"proc/cpuinfo": RASPBERRY + "Hardware\t: BCM2835\n"}, "BCM2835, ARM 0x41/0xd0b, 4 cores"),
    ({"proc/cpuinfo": RASPBERRY}, "ARM 0x41/0xd0b, 4 cores"),
    ({"proc/cpuinfo": CORE.format(0, "0x41", "0xd0b") + CORE.format(1, "0x41", "0xd05")},
     "ARM 0x41/0xd05 0x41/0xd0b, 2 cores"),
    ({"proc/cpuinfo": "model name\t: ARMv7 Processor rev 3 (v7l)\n" + CORE.format(0, "0x41", "0xd08")},
     "ARM 0x41/0xd08, 1 cores")])
def test_arm_under_linux_is_named_by_board_and_cores(tmp_path, files, name):
    assert cpu_name("Linux", make_files(tmp_path, files)) == name


@pytest.mark.parametrize("files", [{}, {"proc/cpuinfo": "processor\t: 0\nuarch\t: sifive,u74\n"}])
def test_machine_without_a_name_has_its_kind_and_its_cores(tmp_path, monkeypatch, files):
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_name("Linux", make_files(tmp_path, files)) == "riscv64, 6 cores"
    assert cpu_name("FreeBSD", tmp_path) == "riscv64, 6 cores"


def test_mac_is_named_by_its_chip(monkeypatch):
    def run(words, **options):
        assert words == ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(words, 0, b"Apple M2 Pro\n", b"")
    monkeypatch.setattr(machine.subprocess, "run", run)
    assert cpu_name("Darwin") == "Apple M2 Pro"


def test_mac_without_sysctl_is_still_more_than_arm(monkeypatch):
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **options: (_ for _ in ()).throw(OSError()))
    assert cpu_name("Darwin") == "arm, 12 cores"


def test_windows_is_named_by_its_registry(monkeypatch):
    class Key:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass
    registry = types.ModuleType("winreg")
    registry.HKEY_LOCAL_MACHINE = 1
    registry.OpenKey = lambda root, name: Key()
    registry.QueryValueEx = lambda key, name: {"ProcessorNameString": ("Intel(R) Core(TM) i7-9750H  ", 1)}[name]
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert cpu_name("Windows") == "Intel(R) Core(TM) i7-9750H"


def test_gpu_of_a_mac_has_the_name_of_its_chip(monkeypatch):
    """A record's device name is this one, and a bank is looked for under it before the run."""
    monkeypatch.setattr(hardware, "cpu_name", lambda: "Apple M2 Pro")
    assert hardware.machine_name("mps") == hardware.machine_name("cpu") == "Apple M2 Pro"
