"""The library of compiled convolutions: built once, whole, for this processor, or not at all."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys

import pytest

from vggkit.engines import kernels
from vggkit.engines.cpu import why_not_compiled

COMPILER = next(filter(shutil.which, kernels.COMPILERS), None)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VGGKIT_ENGINE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    kernels.library.cache_clear()
    why_not_compiled.cache_clear()
    yield tmp_path / "vggkit" / "kernels"
    kernels.library.cache_clear()
    why_not_compiled.cache_clear()


LOAD = "from vggkit.engines.kernels import library; library()"
STUB = "".join(
    f"int vggkit_{name}() {{ return 0; }}"
    for name in ("convolve", "weight_gradient", "fully_connected", "sparse_product")
)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@needs_compiler
def test_it_is_built_once_for_its_owner_alone_by_a_compiler_with_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    monkeypatch.setenv("CXX", f"{COMPILER} -DNOTHING")
    umask = os.umask(0)
    try:
        kernels.library()
    finally:
        os.umask(umask)
    made = sorted((tmp_path / "new").rglob("*"))
    assert [path.name for path in made[:-1]] == ["cache", "vggkit", "kernels"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3 + [0o644]
    kernels.library.cache_clear()
    kernels.library()
    assert made[-1].stat().st_mtime_ns == next(made[-2].iterdir()).stat().st_mtime_ns


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A compiler that takes no time: all functions do nothing. Its calls are lines of a file, which is returned."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "stub.c").write_text(STUB)
    subprocess.run(["cc", "-shared", "-fPIC", "stub.c", "-o", "stub.so"], cwd=tmp_path, check=True)
    fake = tmp_path / "fake compiler"
    calls = tmp_path / "calls"
    fake.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\necho >>'{calls}'\nwhile [ $1 != -o ]; do shift; done\n"
        f"exec cat '{tmp_path}/stub.so' >$2\n"
    )
    fake.chmod(0o700)
    calls.touch()
    monkeypatch.setenv("CXX", f"'{fake}'")
    return calls


def load():
    kernels.library.cache_clear()
    kernels.library()


def start(program=LOAD, *inside):
    """What a new process says."""
    done = subprocess.run([*inside, sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_processes_that_build_at_once_do_not_meet(fresh, stub):
    processes = [subprocess.Popen([sys.executable, "-c", LOAD], stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in processes] == [b""] * 3
    assert len(list(fresh.iterdir())) == 1


def test_a_damaged_library_is_built_again(fresh, stub):
    load()
    (library,) = fresh.iterdir()
    whole = library.read_bytes()
    for damaged in (b"", whole[:31], whole[: len(whole) // 2], whole[:-1], whole[:-9] + b"x" + whole[-8:]):
        library.write_bytes(damaged)
        load()
        assert library.read_bytes() == whole
    assert stub.read_text() == "\n" * 6


def test_code_of_others_is_never_loaded(monkeypatch, tmp_path, stub):
    """The folder is exchanged, while it is loaded, with one whose library leaves a mark."""
    load()
    shared, mark = tmp_path / "shared", tmp_path / "mark"
    shared.mkdir()
    (tmp_path / "vggkit").rename(shared / "vggkit")
    shutil.copytree(shared / "vggkit", shared / "evil")
    (tmp_path / "evil.c").write_text(
        f'#include <fcntl.h>\n{STUB}\n__attribute__((constructor)) void run() {{ creat("{mark}", 0600); }}'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "evil.c", "-o", "evil.so"], cwd=tmp_path, check=True)
    (library,) = (shared / "evil" / "kernels").iterdir()
    code = (tmp_path / "evil.so").read_bytes()
    library.write_bytes(hashlib.sha256(code).digest() + code)
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    exchange = "for a, b in ('vggkit', 'x'), ('evil', 'vggkit'), ('vggkit', 'evil'), ('x', 'vggkit'): os.rename(a, b)"
    attack = f"import os\nos.chdir({str(shared)!r})\nwhile True:\n    {exchange}"
    attacker = subprocess.Popen([sys.executable, "-c", attack])
    tries = (
        f"from vggkit.engines.kernels import library\nimport os\nerrors = set()\n"
        f"for _ in range(500):\n    try: library()\n    except ValueError as error: errors.add(str(error))\n"
        f"    assert not os.path.exists({str(mark)!r})\n"
        f"raise SystemExit(str(errors))"
    )
    try:
        expected = f"expected a folder that only you can write, got {shared}, try chmod go-w"
        assert start(tries) == (1, str({expected}))
    finally:
        attacker.kill()
        attacker.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_somebody_else_owns_is_not_loaded(fresh, stub):
    load()
    (library,) = fresh.iterdir()
    os.chown(library, 65534, 65534)
    load()
    assert stub.read_text() == "\n" * 2
    os.chown(fresh, 65534, 65534)
    with pytest.raises(kernels.KernelError, match=f"expected a folder that only you can write, got {fresh}, try"):
        load()


def test_folders_that_others_can_write_are_not_trusted(fresh, tmp_path):
    fresh.mkdir(parents=True)
    for folder, mode in (fresh, 0o777), (fresh, 0o1777), (fresh.parent, 0o777), (fresh.parent, 0o772):
        folder.chmod(mode)
        with pytest.raises(kernels.KernelError, match=f"expected a folder that only you can write, got {folder}, try"):
            kernels.library()
        folder.chmod(0o700)
    fresh.rmdir()
    fresh.symlink_to(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(kernels.KernelError, match=f"expected a folder that only you can write, got {tmp_path}/shared"):
        kernels.library()


@pytest.mark.parametrize(("mount", "said"), [("size=64k", "No space left on device"), ("noexec", "")])
def test_a_full_cache_and_one_that_forbids_execution(tmp_path, stub, mount, said):
    inside = (
        "unshare",
        "-rm",
        "sh",
        "-c",
        f"mount -t tmpfs -o mode=700,{mount} x '{tmp_path}/vggkit' && exec \"$@\"",
        "-",
    )
    (tmp_path / "vggkit").mkdir()
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    code, message = start(f"{LOAD}; library.cache_clear(); library()", *inside)
    assert (code, said in message) == (int(bool(said)), True)
    assert stub.read_text() == ("" if said else "\n")


def test_a_disk_on_which_it_has_no_room(fresh, stub):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    assert start(f"{limit}\n{LOAD}")[1].endswith(
        "KernelError: expected a compiler and a cache for the kernels, got: [Errno 27] File too large"
    )
    assert (list(fresh.iterdir()), stub.read_text()) == ([], "")


def test_a_compiler_that_fails_is_asked_once(monkeypatch, fresh, tmp_path, stub):
    for name, line in ("g++", f"[ $1 = --version ] && exit; echo bad >>'{stub}'; exit 1"), ("c++", 'exec "$FAKE" "$@"'):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("FAKE", str(tmp_path / "fake compiler"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CXX")
    load()
    load()
    assert stub.read_text() == "bad\n\n"


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(kernels, "COMPILERS", ("no-such-compiler",))
    assert why_not_compiled() == "expected a Unix with a C++ compiler, got none of no-such-compiler"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("echo 'x.cpp:1: error: no' >&2; exit 1", "x.cpp:1: error: no"),
        ("exit 3", "exit code 3"),
        ("exit 0", "no library"),
    ],
)
def test_a_compiler_that_builds_nothing_leaves_nothing(monkeypatch, fresh, tmp_path, line, said):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\n{line}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    assert why_not_compiled() == f"expected {compiler} to build the kernels, got: {said}"
    assert list(fresh.iterdir()) == []


@pytest.mark.parametrize(("text", "said"), [("g++ 'x", "No closing quotation"), ("/nowhere/c++", "No such file")])
def test_what_is_no_compiler_is_said(monkeypatch, text, said):
    monkeypatch.setenv("CXX", text)
    with pytest.raises(kernels.KernelError, match=f"^expected a compiler and a cache for the kernels, got: .*{said}"):
        kernels.library()


def test_a_home_that_cannot_be_found_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "c++")

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernels, "user_cache", nowhere)
    assert "Could not determine home directory" in why_not_compiled()


def test_the_library_is_not_built_by_a_description(fresh):
    done = subprocess.run([sys.executable, "-m", "vggkit", "describe", "vgg16"], env=os.environ, capture_output=True)
    assert done.returncode == 0
    assert not fresh.exists()
