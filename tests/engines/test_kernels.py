"""The library of compiled convolutions: built once, whole, for this processor, or not at all."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from vggkit.engines import convolution as winograd
from vggkit.engines import kernels
from vggkit.engines.convolution import Conv2d, engine

COMPILER = next(filter(shutil.which, kernels.COMPILERS), None)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VGGKIT_ENGINE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    kernels.library.cache_clear()
    engine.cache_clear()
    yield tmp_path / "vggkit" / "kernels"
    kernels.library.cache_clear()
    engine.cache_clear()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_it_is_built_once_for_its_owner_alone(fresh):
    kernels.library()
    (library,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    built = library.stat()
    kernels.library.cache_clear()
    kernels.library()
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [built.st_mtime_ns]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_processes_that_build_at_once_do_not_meet(fresh):
    program = "from vggkit.engines import kernels; kernels.library()"
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in processes] == [b""] * 3
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize(("capability", "chosen"), [("AVX2", "plain"), ("AVX512", "torch"), ("DEFAULT", "torch")])
def test_without_a_compiler_it_is_the_faster_one_and_says_why(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(kernels, "COMPILERS", ("no-such-compiler",))
    assert engine() == (chosen, "expected a C++ compiler, got none of no-such-compiler")


def test_a_compiler_that_fails_leaves_nothing(monkeypatch, fresh, tmp_path):
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'x.cpp:1: error: no' >&2; exit 1\n")
    failing.chmod(0o700)
    monkeypatch.setenv("CXX", str(failing))
    assert engine()[0] != "compiled"
    assert engine()[1] == f"expected {failing} to build the kernels, got: x.cpp:1: error: no"
    assert list(fresh.iterdir()) == []


def test_a_folder_that_others_can_write_is_not_trusted(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    with pytest.raises(kernels.KernelError, match="expected what only you own and can write"):
        kernels.library()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_damaged_library_is_built_again(fresh):
    program = "from vggkit.engines import kernels; kernels.library()"
    subprocess.run([sys.executable, "-c", program], check=True)
    (library,) = fresh.iterdir()
    size = library.stat().st_size
    library.write_bytes(b"")
    kernels.library()
    assert library.stat().st_size == size


@pytest.mark.parametrize(("wanted", "chosen"), [("torch", "torch"), ("plain", "plain")])
def test_the_environment_chooses(monkeypatch, wanted, chosen):
    monkeypatch.setenv("VGGKIT_ENGINE", wanted)
    assert engine() == (chosen, "VGGKIT_ENGINE says so")


def test_another_name_is_refused(monkeypatch):
    monkeypatch.setenv("VGGKIT_ENGINE", "fastest")
    with pytest.raises(ValueError, match="expected VGGKIT_ENGINE to be one of compiled, plain, torch, got 'fastest'"):
        engine()


def test_a_compiler_with_arguments_and_a_home_that_cannot_be_found(monkeypatch):
    monkeypatch.setenv("CXX", f"{COMPILER or 'c++'} -DNOTHING")
    assert (engine()[0] == "compiled") == bool(COMPILER)
    kernels.library.cache_clear()
    engine.cache_clear()

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernels, "user_cache", nowhere)
    assert engine()[0] != "compiled"
    assert "Could not determine home directory" in engine()[1]


def test_compiled_that_cannot_be_had_is_an_error(monkeypatch):
    monkeypatch.setenv("VGGKIT_ENGINE", "compiled")
    monkeypatch.setattr(kernels, "COMPILERS", ())
    with pytest.raises(kernels.KernelError, match="expected a C"):
        engine()


def test_what_does_not_pay_is_torchs(monkeypatch):
    monkeypatch.setattr(winograd, "engine", lambda: ("compiled", ""))
    x = torch.zeros(2, 16, 8, 8)
    assert Conv2d(16, 16, 3, padding=1).pays(x)
    others = [
        Conv2d(16, 24, 3, padding=1),  # outputs
        Conv2d(16, 16, 3),  # padding
        Conv2d(16, 16, 3, padding=1, stride=2),
        Conv2d(16, 16, 3, padding=1, groups=2),
        Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        Conv2d(16, 16, 5, padding=1),
        Conv2d(16, 16, 3, padding=1).double(),
    ]
    assert not any(conv.pays(x.to(conv.weight.dtype)) for conv in others)
    conv = Conv2d(16, 16, 3, padding=1)
    assert not conv.pays(torch.zeros(0, 16, 8, 8))
    assert not conv.pays(torch.zeros(2, 16, 2, 2))  # fills a quarter of its tile
    with torch.autocast("cpu", torch.bfloat16):
        assert not conv.pays(x)
    image = Conv2d(3, 16, 3, padding=1)
    assert image.pays(torch.zeros(2, 3, 8, 8))
    assert not image.pays(torch.zeros(2, 3, 8, 8, requires_grad=True))


def test_the_library_is_not_built_by_a_description(fresh):
    done = subprocess.run([sys.executable, "-m", "vggkit", "describe", "vgg16"], env=os.environ, capture_output=True)
    assert done.returncode == 0
    assert not fresh.exists()
