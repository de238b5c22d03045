"""
The cores that a process may use: its affinity, and the quota of its control groups. Not the cores that exist.

python -m pytest tests/test_cores.py -q
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nanochat import machine
from nanochat.common import REPO_ROOT
from nanochat.lab import profiles
from nanochat.lab.profiles import side_by_side, threads_of_cell
from nanochat.machine import cgroup_cores, usable_cores

ARMS = [SimpleNamespace(config=SimpleNamespace(device_type="cpu"))] * 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_one_core_allowed_is_one_cell_at_a_time():
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "from types import SimpleNamespace as S\n"
            "from nanochat.machine import usable_cores\n"
            "from nanochat.lab.profiles import side_by_side\n"
            "print(usable_cores(), side_by_side([S(config=S(device_type='cpu'))] * 4))")
    run = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["1", "1"], run.stderr


def groups(tmp_path, mine, **files):
    """cgroup_cores on made-up control groups: files {"path with | for /": content}."""
    for name, content in files.items():
        path = tmp_path / "mounted" / name.replace("|", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "mine").write_text(mine)
    return cgroup_cores(tmp_path / "mounted", tmp_path / "mine")


def test_quota_of_version_2_is_the_smallest_on_the_way_up(tmp_path):
    # docker run --cpus=2: inside the container its own group is mounted as the root
    assert groups(tmp_path, "0::/\n", **{"cpu.max": "200000 100000\n"}) == 2.0
    assert groups(tmp_path, "0::/a/b\n", **{"a|cpu.max": "150000 100000\n", "a|b|cpu.max": "max 100000\n"}) == 1.5


def test_quota_of_version_1_and_no_quota(tmp_path):
    mine = "11:memory:/x\n4:cpu,cpuacct:/docker/x\n"
    files = {"cpu|cpu.cfs_quota_us": "300000\n", "cpu|cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path / "1", mine, **files) == 3.0
    assert groups(tmp_path / "2", mine, **{**files, "cpu|cpu.cfs_quota_us": "-1\n"}) is None
    assert groups(tmp_path / "3", "0::/\n", **{"cpu.max": "max 100000\n"}) is None
    assert cgroup_cores(tmp_path, tmp_path / "no file, as on a Mac") is None


@pytest.mark.parametrize("quota, cores", [(None, 4), (2.5, 2), (0.5, 1), (64.0, 4)])
def test_usable_cores_are_the_fewer_of_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(machine, "cgroup_cores", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.parametrize("cores, quota, asked, jobs, threads", [
    (8, None, "", 2, 4),  # a share each
    (8, None, "", 1, None),  # torch chooses
    (8, None, "3", 2, 3), (8, None, "16", 2, 4),  # never more than asked for, and never more than there are
    (2, 2.0, "", 1, 2),  # torch would see all cores of the machine
    (2, 2.0, "1", 1, None),  # the environment says it already
    (1, None, "", 4, 1)])
def test_threads_of_a_cell(monkeypatch, cores, quota, asked, jobs, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(profiles, "usable_cores", lambda: cores)
    monkeypatch.setattr(profiles, "cgroup_cores", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads_of_cell(jobs) == threads
    assert side_by_side(ARMS) == min(4, cores)
