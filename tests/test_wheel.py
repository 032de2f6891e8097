"""The package as it is published: an sdist that a wheel can be built of, and a wheel that works without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("simsfl", "kernels", "hw_profile")
WHERE = """
import simsfl, simsfl.kernels, simsfl.hw_profile
from simsfl.fleet.profile_files import shipped
from simsfl.setup.weights import EXPERTS
print(simsfl.__file__, simsfl.kernels.__file__, simsfl.hw_profile.__file__, EXPERTS, *shipped(), sep="\\n")
"""


def done(*argv, at):
    """Return what a process prints that has to succeed; nothing of the checkout is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(argv, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel that is built of the sdist of a copy of the checkout, without the network."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for one in ROOT.iterdir():
        if one.is_file():
            shutil.copy(one, copy)
        elif one.name in PACKAGES:
            shutil.copytree(one, copy / one.name, ignore=shutil.ignore_patterns("__pycache__"))
    done(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, at=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """Return the directory of programs of an environment that has the wheel, and the packages that it needs."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    done(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel, at=home)
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", at=home).strip())
    # a directory that is named in this way comes last, and an editable install in it has no effect
    (own / "at-hand.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python.parent


@pytest.mark.slow
def test_a_wheel_trains_and_reports_in_an_empty_directory(programs, tmp_path):
    own = programs.parent.resolve()
    *modules, experts = map(Path, (lines := done(programs / "python", "-c", WHERE, at=tmp_path).splitlines())[:4])
    assert all(own in file.resolve().parents for file in modules)
    assert {"laptop-cifar10.safetensors", "laptop-shapes.safetensors"} <= {file.name for file in experts.iterdir()}
    assert {"epyc-torch", "epyc-lean"} <= set(lines[4:])
    assert (modules[0].parent / "py.typed").is_file()
    assert done(programs / "simsfl", "--version", at=tmp_path) == f"simsfl {version('simsfl')}\n"
    done(programs / "simsfl", "run", "--dataset", "shapes", "--rounds", "1", at=tmp_path)
    (run,) = tmp_path.glob("runs/*")
    done(programs / "simsfl", "report", run, at=tmp_path)
    assert {"summary.json", "report.md", "report.html"} <= {file.name for file in run.iterdir()}
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
