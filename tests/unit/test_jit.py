"""The cache of compiled kernels only ever saves time."""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import numpy as np
import pytest

from resnet_limits import jit

SOURCE = """
from resnet_limits.jit import compiled

@compiled()
def double(x):
    return 2 * x
"""
# A folder that nothing can be written to, whoever asks.
NOWHERE = "/proc/nope"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A module that is compiled, whose only place is ``tmp_path/cache``."""
    for name in ("shared", "temporary"):
        (tmp_path / name).mkdir()
    file = tmp_path / "shared" / "doubling.py"
    file.write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit.tempfile, "tempdir", NOWHERE)
    return file


def fresh(source):
    """Load the module as a new process would."""
    spec = importlib.util.spec_from_file_location("doubling", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.double


def was_loaded(source, value=3):
    """Run the function; say whether its code came from a file."""
    function = fresh(source)
    assert function(value) == 2 * value
    hits, misses = (sum(counts.values()) for counts in function.stats[1:])
    assert hits + misses == 1
    return bool(hits)


def entries(source):
    return sorted(source.parents[1].glob("**/*.kernel*"))


def test_a_second_process_loads_what_the_first_has_compiled(source):
    assert not was_loaded(source)
    (entry,) = entries(source)
    assert entry.is_relative_to(source.parents[1] / "cache")
    assert was_loaded(source)


def damage(content, kind):
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return {
        "empty": b"",
        "cut": content[:20],
        "cut near its end": content[:-1],
        "garbage": np.random.default_rng(0).bytes(1000),
        "a bit": bytes(changed),
        "zeros": bytes(len(content)),
        "a pickle of another type": pickle.dumps([1, 2]),
        "a sealed pickle of another type": jit._DIGEST(pickle.dumps(5)).digest() + pickle.dumps(5),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "empty", "cut", "cut near its end", "garbage", "a bit", "zeros",
        "a pickle of another type", "a sealed pickle of another type",
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_again(source, kind):
    was_loaded(source)
    (entry,) = entries(source)
    entry.write_bytes(damage(entry.read_bytes(), kind))
    assert not was_loaded(source)
    assert entries(source) == [entry]
    assert was_loaded(source)


def test_a_payload_that_numba_does_not_take_is_made_again(source):
    was_loaded(source)
    (entry,) = entries(source)
    key, _ = pickle.loads(entry.read_bytes()[32:])
    entry.write_bytes(jit._seal(key, pickle.dumps(("not", "a", "result"))))
    assert not was_loaded(source)
    assert was_loaded(source)


def test_an_edited_source_is_compiled_again_and_leaves_no_second_file(source):
    was_loaded(source)
    before = entries(source)
    # Neither size nor time of the file tell the difference.
    times = os.stat(source)
    source.write_text(SOURCE.replace("2 * x", "3 * x"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fresh(source)(3) == 9
    assert entries(source) == before


FROM_ELSEWHERE = """
from resnet_limits.jit import compiled
import KIND

@compiled()
def double(x):
    return CALL(x)
"""
ELSEWHERE = {
    "a function": "from numba import njit\n\n@njit\ndef twice(x):\n    return 2 * x\n",
    "an overload": """
from numba.extending import overload

def twice(x):
    raise NotImplementedError

@overload(twice)
def _twice(x):
    return lambda x: 2 * x
""",
}


@pytest.mark.parametrize("way", ["import", "from"])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_edit_of_what_is_called_from_another_file_is_noticed(tmp_path, kind, way):
    """Modules of one package, the second of which is edited."""
    package = tmp_path / "doubles"
    package.mkdir()
    (package / "__init__.py").touch()
    imported, call = {
        "import": ("from doubles import twos", "twos.twice"),
        "from": ("from doubles.twos import twice", "twice"),
    }[way]
    text = FROM_ELSEWHERE.replace("import KIND", imported).replace("CALL", call)
    (package / "doubling.py").write_text(text)
    code = RUN.replace("import doubling", "from doubles import doubling")
    cache = str(tmp_path / "cache")

    def run(name, content):
        (package / name).write_text(content)
        return said(start(package, code, NUMBA_CACHE_DIR=cache))[0]

    assert run("twos.py", ELSEWHERE[kind]) == ["6", "0", "1"]
    assert run("twos.py", ELSEWHERE[kind]) == ["6", "1", "0"]
    assert run("twos.py", ELSEWHERE[kind].replace("2 * x", "3 * x")) == ["9", "0", "1"]
    # The negative control: what is not called does not count.
    assert run("ones.py", "") == ["9", "1", "0"]


@pytest.mark.parametrize("what", ["numba", "llvmlite", "processor"])
def test_code_of_another_version_or_processor_is_not_run(source, monkeypatch, what):
    was_loaded(source)
    (entry,) = entries(source)
    if what == "processor":
        codegen = type(numba.core.registry.cpu_target.target_context.codegen())
        monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("x86_64", "another", ""))
    else:
        monkeypatch.setattr(f"{what}.__version__", "0.0")
    assert not was_loaded(source)
    (new,) = set(entries(source)) - {entry}
    # Even under the name of the right one.
    entry.rename(new)
    assert not was_loaded(source)


def test_code_for_other_types_is_not_run(source):
    """Processes that compile at once for two types must not end with one's code for the other."""
    was_loaded(source, 3)
    (whole,) = entries(source)
    was_loaded(source, 3.5)
    (real,) = set(entries(source)) - {whole}
    real.write_bytes(whole.read_bytes())
    assert not was_loaded(source, 3.5)
    assert was_loaded(source, 3.5)


@pytest.mark.parametrize(
    "number", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EFBIG", "ESTALE"]
)
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "replace", "listdir"])
def test_what_cannot_be_written_is_not_kept(source, monkeypatch, call, number):
    def fail(*_, **__):
        raise OSError(getattr(errno, number), "no")

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(jit, "_write", fail)
        elif call == "mkdir":
            patch.setattr(Path, "mkdir", fail)
        else:
            patch.setattr(jit.os, call, fail)
        assert not was_loaded(source)
    # What an unfinished writer leaves is no entry, and the next one is none the worse.
    assert was_loaded(source) == (call == "listdir")
    assert was_loaded(source)
    assert len(entries(source)) == 1


@pytest.mark.parametrize("kind", ["a file", "missing", "nowhere", "below a file"])
def test_the_folder_for_temporary_files_is_the_last_place(source, monkeypatch, kind):
    root = source.parents[1]
    (root / "file").touch()
    folder = {
        "a file": root / "file", "missing": root / "a" / "b", "nowhere": NOWHERE,
        "below a file": root / "file" / "c",
    }[kind]  # fmt: skip
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(jit.tempfile, "tempdir", str(root / "temporary"))
    assert not was_loaded(source)
    assert was_loaded(source)
    (entry,) = entries(source)
    assert entry.is_relative_to(root / ("a" if kind == "missing" else "temporary"))
    if kind != "missing":
        assert entry.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["a link", "open to others", "another user's"])
def test_a_folder_for_temporary_files_that_is_not_ones_own_is_not_used(source, monkeypatch, kind):
    root = source.parents[1]
    monkeypatch.setattr(numba.config, "CACHE_DIR", NOWHERE)
    monkeypatch.setattr(jit.tempfile, "tempdir", str(root / "temporary"))
    was_loaded(source)
    (entry,) = entries(source)
    own = entry.parent
    if kind == "a link":
        own.rename(root / "elsewhere")
        own.symlink_to(root / "elsewhere")
    elif kind == "open to others":
        own.chmod(0o777)
    else:
        monkeypatch.setattr(jit.os, "geteuid", lambda: os.getuid() + 1)
        own.rename(str(own).replace(f"limits-{os.getuid()}", f"limits-{os.getuid() + 1}"))
    assert not was_loaded(source)
    assert not was_loaded(source)


@pytest.mark.parametrize("kind", ["another owner", "open to others", "a link", "a pipe"])
def test_a_file_that_others_may_have_written_is_not_executed(source, monkeypatch, kind):
    was_loaded(source)
    (entry,) = entries(source)
    kept = entry.with_suffix(".kept")
    if kind == "another owner":
        real = os.fstat

        def foreign(handle):
            found = list(real(handle))
            found[stat.ST_UID] += 1
            return os.stat_result(found)

        monkeypatch.setattr(jit.os, "fstat", foreign)
    elif kind == "open to others":
        entry.chmod(0o666)
    else:
        entry.rename(kept)
        entry.symlink_to(kept) if kind == "a link" else os.mkfifo(entry)
    assert not was_loaded(source)


def test_what_killed_writers_leave_is_removed_in_time(source):
    was_loaded(source)
    (entry,) = entries(source)
    old, new = (entry.with_name(f"{entry.name}.{part}") for part in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    entry.unlink()
    assert not was_loaded(source)
    assert entries(source) == sorted([entry, new])


def test_other_internals_of_numba_cost_the_cache_and_no_more(source, monkeypatch):
    monkeypatch.delattr("numba.core.caching.NullCache")
    function = fresh(source)
    assert function(3) == 6
    assert entries(source) == []


RUN = """
import doubling
print(doubling.double(3), *map(len, doubling.double.stats[1:]))
"""


def start(source, code=RUN, **variables):
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(source.parent), str(Path(jit.__file__).parents[1])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": NOWHERE,
        "TMPDIR": NOWHERE,
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split(), err


@pytest.mark.parametrize("variables", [{}, {"HOME": "relative"}, {"XDG_CACHE_HOME": "/dev/null"}])
def test_a_shared_installation_that_cannot_be_written_to(source, variables):
    """As root, to whom no folder is closed, the folder beside the source is a file."""
    (source.parent / "__pycache__").touch()
    nowhere = f"import tempfile\ntempfile.tempdir = {NOWHERE!r}\n{RUN}"
    temporary = str(source.parents[1] / "temporary")
    assert said(start(source, nowhere, **variables)) == (["6", "0", "1"], "")
    assert said(start(source, TMPDIR=temporary, **variables)) == (["6", "0", "1"], "")
    assert said(start(source, TMPDIR=temporary, **variables)) == (["6", "1", "0"], "")


def test_a_file_too_large_for_the_disk_stops_nobody(source):
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n{RUN}"
    cache = str(source.parents[1] / "cache")
    assert said(start(source, code, NUMBA_CACHE_DIR=cache)) == (["6", "0", "1"], "")
    assert entries(source) == []


def test_processes_that_compile_at_once(source):
    cache = str(source.parents[1] / "cache")
    codes = [RUN.replace("(3)", f"({value})") for value in ("3", "3.0", "3j", "3") * 2]
    running = [start(source, code, NUMBA_CACHE_DIR=cache) for code in codes]
    assert [said(process)[0][0] for process in running] == ["6", "6.0", "6j", "6"] * 2
    assert len(entries(source)) == 3
    for code in codes[:3]:
        assert said(start(source, code, NUMBA_CACHE_DIR=cache))[0][1:] == ["1", "0"]


def test_without_compiler(source):
    """What the kernels do, torch does."""
    code = """
    import numpy as np, torch
    from resnet_limits import jit
    from resnet_limits.limits import kernels
    from resnet_limits.networks.dense import DenseNetwork
    from resnet_limits.units import Perceptron
    from resnet_limits.config import Shape
    from resnet_limits.dynamics import Dynamics
    from resnet_limits.problem import Loss
    unit = Perceptron("tanh")
    problem = Dynamics.of_unit(np.ones((1, 2)), np.ones((1, 1)), Loss("squared_error"), unit, 3,
                                rate_in=1.0, rate_out=1.0)
    network = DenseNetwork(problem, Shape(2, 4, 4), [0], np.ones((1, 4, 3)), 0)
    if not jit.enabled():  # the kernels take seconds to compile
        assert network.forward_pass().isfinite().all()
    code = type(kernels.code_of(unit)).__name__
    print(jit.enabled(), code, type(network.branches[0].products).__name__)
    """
    without, with_it = (said(start(source, code, NUMBA_DISABLE_JIT=n))[0] for n in "10")
    assert without == ["False", "NoneType", "Batched"]
    assert with_it == ["True", "PerceptronCode", "Compiled"]
