"""
Common to all tests: the repository on the path, one thread, and a base directory of its own for each test.

No test may write into the user's own artifacts, so NANOCHAT_BASE_DIR points into a temporary folder
for the whole session (fixtures of a module or session see that folder) and into a fresh folder for each test.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere; subprocesses inherit it
# the ledger of the tests is not the repository's
os.environ["NANOCHAT_LEDGER"] = os.path.join(tempfile.mkdtemp(prefix="nanochat-tests-"), "experiments.csv")
REPO_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_ROOT))

import pytest  # noqa: E402

# Variables that a user's shell may hold and that no test may depend on.
FOREIGN_ENVIRONMENT = ("NANOCHAT_DTYPE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN", "SKIP_SETUP", "PYTHON",
                       "MAKEFLAGS", "MAKELEVEL")


# A background job or nohup starts with these ignored, and children would inherit that: the tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item):
    torch = sys.modules.get("torch")  # never imported here: most tests need none
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def session_base_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN_ENVIRONMENT:
            patch.delenv(name, raising=False)
        path = tmp_path_factory.mktemp("session_base")
        patch.setenv("NANOCHAT_BASE_DIR", str(path))
        yield path


@pytest.fixture(autouse=True)
def base_dir(session_base_dir, tmp_path, monkeypatch):
    """This test's own NANOCHAT_BASE_DIR, made when something asks for it."""
    path = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(path))
    return path


@pytest.fixture(scope="session")
def data_dir():
    """Folder of real text beside the repository, which not everybody has."""
    path = REPO_ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return path
