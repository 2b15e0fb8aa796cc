"""What `pip install .` gives."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the sdist installs; `make dist` does it with all requirements, in an environment of its own."""
    made, target = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("installed")
    program = f"from flit_core.buildapi import build_sdist; print(build_sdist({str(made)!r}))"
    built = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, made / built.stdout.strip()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_the_installed_program_works(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, installed / "bin" / "vgg", "describe", "vgg16"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
    )
    assert "138,357,544" in done.stdout, done.stderr


def test_the_package_is_whole(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    source = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.suffix not in (".pyc", "")
    }
    assert source <= files
    assert "vggkit/data/fashion_mnist_sample/LICENSE" in files


def test_the_pins_satisfy_the_ranges():
    texts = [(ROOT / f"requirements{which}.txt").read_text() for which in ("", "-dev")]
    program, development = (dict(re.findall(r"^([a-zA-Z0-9_.-]+)==(\S+)$", text, re.MULTILINE)) for text in texts)
    assert not program.keys() & development.keys()
    pins = program | development
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, _, least = requirement.partition(">=")
        pinned = pins[name.replace("-", "_") if name.replace("-", "_") in pins else name]
        assert [int(n) for n in pinned.split(".")[:2]] >= [int(n) for n in (least or "0").split(".")[:2]], name
    assert {"torchvision", "keras", "mypy", "pandas"}.isdisjoint(program)


def test_the_public_names_are_all_there():
    import vggkit

    for name in vggkit.__all__:
        assert getattr(vggkit, name).__doc__
        assert name in dir(vggkit)
    with pytest.raises(AttributeError, match="module 'vggkit' has no attribute 'resnet'"):
        vggkit.resnet  # noqa: B018


def test_importing_it_imports_no_torch_and_allocates_nothing():
    program = "import sys, vggkit; vggkit.Architecture.parse('vgg16'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


FLOORS = [
    {"errors", "version"}, {"design"}, {"networks", "data"}, {"engines", "weights"}, {"inference"}, {"training"}, {"lab"}, {"app"},
    {"verbs"}, {"cli"}, {"__main__"},
]  # fmt: skip
"""From the ground to the top; a module imports its own room and the floors below it."""


def test_imports_run_one_way():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    for path in (ROOT / "src/vggkit").rglob("*.py"):
        own = path.relative_to(ROOT / "src/vggkit").parts[0].removesuffix(".py")
        for imported in re.findall(r"^\s*(?:from|import) vggkit\.(\w+)", path.read_text(), re.MULTILINE):
            if own != "__init__" and imported != own:
                assert floor_of[imported] < floor_of[own], f"{path.name} of {own} imports {imported}"
