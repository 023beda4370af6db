"""Shared by the tests: a copy of the repository to run scripts in, and a small phantom there."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

# Tiny tensors: threads cost more than they give, here and in the scripts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from server import Server, archive  # noqa: E402

from common.errors import UserError  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # So in a shell's background job: the scripts under test would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)

TEACHERS = ("teacher_t1_unet", "teacher_t2_transunet")
STUDENTS = ("student_s1", "student_s2")
PAIRS = ("kd_t1_s1", "kd_t1_s2", "kd_t2_s1", "kd_t2_s2")
STAGES = (*TEACHERS, *STUDENTS, *PAIRS)
SOURCES = (
    *("common", "data_prep", *STAGES),
    *("reproduce.py", "README.md", "requirements.txt"),
)


def run(repo: Path, *command, cwd: Path | None = None, code: int = 0, **environment):
    """Run a script of `repo` as a user would; its output. Fails on another exit code."""
    script, *arguments = map(str, command)
    result = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd or repo,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    if code:
        assert "Traceback" not in output, output
    return output


def load_script(path: Path):
    """Import a script as a module, to call its main without a new process.

    Once: its worker processes are sent functions by name, which must be those of the module known.
    """
    name = f"{path.parent.name}_{path.stem}"
    if name in sys.modules and Path(sys.modules[name].__file__) == path:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and processes look modules up by name
    spec.loader.exec_module(module)
    return module


class Infinite(torch.autograd.Function):
    """Leaves a loss as it is and spoils its gradient."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


def damaged(content: bytes, trials: int = 400):
    """A file's content with one bit flipped, or cut short, again and again."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        if trial % 2:
            broken = bytearray(content)
            broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
            yield bytes(broken)
        else:
            yield content[: rng.integers(len(content))]


def refused_or_right(path: Path, read, expected: np.ndarray) -> int:
    """Damage a file 400 times: `read` refuses it with a line that names it, or returns what is
    `expected`; within 5 s and 1 GB. Returns how often it was refused."""
    whole, refused = path.read_bytes(), 0
    for broken in damaged(whole):
        path.write_bytes(broken)
        began = time.perf_counter()
        tracemalloc.start()
        try:
            assert np.array_equal(read(path), expected)
        except UserError as error:
            assert path.name in str(error)
            refused += 1
        assert time.perf_counter() - began < 5
        assert tracemalloc.get_traced_memory()[1] < 1e9
        tracemalloc.stop()
    return refused


@pytest.fixture(scope="session")
def reproduce():
    """reproduce.py as a module."""
    return load_script(ROOT / "reproduce.py")


@pytest.fixture(scope="session")
def repo(tmp_path_factory) -> Path:
    """A copy of the repository's sources, without data or runs."""
    target = tmp_path_factory.mktemp("clone") / "repo"
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("runs", "__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def phantom(repo) -> Path:
    """Eight small phantom patients in Decathlon layout, made by the real script."""
    flags = ("--patients", 8, "--unlabelled", 1, "--size", 64, "--thickness", 14)
    run(repo, "data_prep/make_phantom.py", *flags)
    return repo / "data" / "phantom"


@pytest.fixture(scope="session")
def slices(repo, phantom) -> Path:
    """The phantom as 32-pixel slices in the default data folder, made by the real script."""
    run(repo, "slice_nifti.py", "--input", phantom, "--size", 32, cwd=repo / "data_prep")
    return repo / "data" / "spleen2d"


@pytest.fixture
def own_slices(slices, tmp_path) -> Path:
    """A copy of the slices that a test may damage."""
    return Path(shutil.copytree(slices, tmp_path / "slices"))


@pytest.fixture
def stage(tmp_path) -> Path:
    """The train.py of a stage that exists in this test only: its runs go to a temporary folder."""
    return tmp_path / "stage" / "train.py"


@pytest.fixture
def server():
    """A server of a small Task09_Spleen.tar on this machine."""
    with Server() as it:
        it.content = archive()
        threading.Thread(target=it.serve_forever, args=(0.01,), daemon=True).start()
        yield it
        it.shutdown()
