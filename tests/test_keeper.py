"""The keeper tells the process id and the end, and takes the whole group with it."""

import os
import subprocess
import sys

from reference.keeper import main


def kept(*command, hold=True):
    theirs, ours = os.pipe()
    keeper = subprocess.Popen(
        [sys.executable, "-m", "reference.keeper", str(theirs), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(theirs,),
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    os.close(theirs)
    if not hold:
        os.close(ours)
    out, err = keeper.communicate(timeout=120)
    if hold:
        os.close(ours)
    return keeper.returncode, out.split(), err


def test_it_tells_how_a_command_ended():
    code, (pid, end), said = kept(sys.executable, "-c", "print('hello'); raise SystemExit(3)")
    assert (code, end, said.strip()) == (0, "3", "hello")
    assert int(pid) > 1


def test_a_command_that_is_not_there():
    code, said, words = kept("/nowhere/llama-server")
    assert (code, said) == (127, [])
    assert "does not start: No such file" in words


def test_nobody_holding_it_ends_the_command_and_what_that_started():
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    code, (_, end), _ = kept(sys.executable, "-c", f"{child}; time.sleep(600)", hold=False)
    assert (code, end) == (0, "-9")  # and the pipe of its output is closed, or this had waited


def test_the_command_line_names_the_pipe_and_the_command(capfd):
    theirs, ours = os.pipe()
    assert main([str(theirs), sys.executable, "-c", "raise SystemExit(2)"]) == 0
    os.close(theirs)
    os.close(ours)
    assert capfd.readouterr().out.split()[-1] == "2"
