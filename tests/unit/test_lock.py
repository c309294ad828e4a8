"""One pipeline at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from resnet_limits import lock

HOLD = """
import sys, time
from resnet_limits import lock
held = lock.hold(sys.argv[1], print)
print("held", flush=True)
time.sleep(60)
"""
WORK = """
import sys, time
from resnet_limits import lock
with lock.at_work(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Start a program that holds a folder, and wait until it does."""
    processes = []
    (tmp_path / "results").mkdir()

    def begin(program):
        process = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "results"], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_another_process_is_refused_until_the_first_ends(start, tmp_path):
    first = start(HOLD)
    with pytest.raises(lock.LockError, match=rf"at work here \(.*process {first.pid}, since 20"):
        lock.hold(tmp_path / "results", print)
    first.send_signal(signal.SIGKILL)
    first.wait()
    said = []
    os.close(lock.hold(tmp_path / "results", said.append))
    assert said == []


def test_another_folder_is_free(start, tmp_path):
    start(HOLD)
    os.close(lock.hold(tmp_path / "others", print))


def test_jobs_of_a_killed_pipeline_are_waited_for(start, tmp_path):
    job = start(WORK)
    said = []

    def end(line):
        said.append(line)
        threading.Timer(0.2, job.kill).start()

    os.close(lock.hold(tmp_path / "results", end))
    assert len(said) == 1
    assert "waiting for them to end" in said[0]


WAIT = """
import sys
from resnet_limits import lock
try:
    lock.hold(sys.argv[1], lambda line: print("held", flush=True))
except lock.LockError as error:
    print(error, flush=True)
"""


def test_a_wait_for_jobs_can_be_interrupted_and_names_its_own_process(start, tmp_path):
    start(WORK)
    folder = tmp_path / "results"
    waiting = start(WAIT)
    with pytest.raises(lock.LockError, match=rf"process {waiting.pid}, since 20"):
        lock.hold(folder, print)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=20) == 0
    assert "interrupted while waiting for jobs" in waiting.stdout.read()


def test_jobs_do_not_keep_each_other_out(start, tmp_path):
    held = lock.hold(tmp_path / "results", print)
    start(WORK)
    with lock.at_work(tmp_path / "results"):
        pass
    os.close(held)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(lock.LockError, match=r"cannot be written \(.*\); allowed: [^\n]+$"):
        lock.hold(tmp_path / "file" / "results", print)
    with lock.at_work(tmp_path / "file" / "results"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_line_says_so(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    os.close(lock.hold(tmp_path / "results", said.append))
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert "has no locks" in said[0]
    with lock.at_work(tmp_path / "results"):
        pass


def test_other_failures_of_locking_are_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(lock.LockError, match="cannot be locked"):
        lock.hold(tmp_path / "results", print)


# --- single commands ------------------------------------------------------------------------------


COMMAND = WORK.replace("at_work(", "at_work_alone(")


def test_a_command_is_refused_where_a_pipeline_is_at_work(start, tmp_path):
    pipeline = start(HOLD)
    refused = pytest.raises(
        lock.LockError,
        match=rf"a pipeline is at work here \(.*process {pipeline.pid}, since 20.*allowed: [^\n]+$",
    )
    with refused, lock.at_work_alone(tmp_path / "results"):
        pytest.fail("at work beside a pipeline")
    pipeline.kill()
    pipeline.wait()
    with lock.at_work_alone(tmp_path / "results"):
        pass


def test_pipelines_wait_for_a_command(start, tmp_path):
    command = start(COMMAND)
    said = []

    def end(line):
        said.append(line)
        threading.Timer(0.2, command.kill).start()

    os.close(lock.hold(tmp_path / "results", end))
    assert len(said) == 1
    assert "single commands" in said[0]


def test_commands_do_not_keep_each_other_out(start, tmp_path):
    start(COMMAND)
    with lock.at_work_alone(tmp_path / "results"):
        pass


def test_a_command_that_is_refused_holds_nothing_up(start, tmp_path):
    held = lock.hold(tmp_path / "results", print)
    refused = subprocess.run(
        [sys.executable, "-c", COMMAND, tmp_path / "results"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "a pipeline is at work here" in refused.stderr
    os.close(held)
    said = []
    os.close(lock.hold(tmp_path / "results", said.append))
    assert said == []


def test_asking_does_not_refuse_a_pipeline_that_starts(tmp_path):
    """A command asks by taking the lock for an instant; a pipeline tries more than once."""
    folder = tmp_path / "results"
    folder.mkdir()
    asked = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(asked, fcntl.LOCK_SH)
    threading.Timer(0.02, os.close, [asked]).start()
    os.close(lock.hold(folder, print))


def test_a_command_works_where_nothing_can_be_locked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with lock.at_work_alone(tmp_path / "file" / "results"):
        pass

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    os.close(lock.hold(tmp_path, print))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.at_work_alone(tmp_path):
        pass


@pytest.mark.parametrize("name", [".lock", ".jobs"])
@pytest.mark.parametrize("what", ["a link", "a pipe"])
def test_what_a_link_leads_to_is_not_written(tmp_path, name, what):
    folder, other = tmp_path / "results", tmp_path / "thesis.tex"
    folder.mkdir()
    other.write_text("my own")
    if what == "a link":
        (folder / name).symlink_to(other)
    else:
        os.mkfifo(folder / name)
    before = len(os.listdir("/proc/self/fd"))
    reason = "is a link" if what == "a link" else "is not a regular file"
    with pytest.raises(lock.LockError, match=rf"cannot be written \(\{name} {reason}\); allowed:"):
        lock.hold(folder, print)
    # A job works all the same, and nobody is at work who cannot be known.
    with lock.at_work(folder), lock.at_work_alone(folder):
        pass
    assert other.read_text() == "my own"
    assert len(os.listdir("/proc/self/fd")) == before
    # The negative control: without it the folder is taken.
    (folder / name).unlink()
    os.close(lock.hold(folder, print))
