"""A bar is for a terminal, and says how much is left."""

import os
import pty
import subprocess
import sys
import termios

CODE = """
import time
from cptjax.command.bar import bar
with bar(4_000_000, "B", "converting") as shown:
    for _ in range(3):
        time.sleep(0.15)
        shown.update(1_000_000)
"""


def test_on_a_pipe_nothing_is_shown():
    # Broken by: disable=False.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_on_a_terminal_there_is_what_is_left_and_it_goes_away():
    # Broken by: total left out; leave=True; no unit_scale.
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run([sys.executable, "-c", CODE], stderr=theirs, stdout=subprocess.PIPE, check=True)
    os.close(theirs)
    drawn = os.read(ours, 2**16).decode()
    os.close(ours)
    assert done.stdout == b""
    assert any("converting:  75%" in each and "3.00M/4.00M [00:00<00:00" in each for each in drawn.split("\r"))
    assert "\n" not in drawn and drawn.endswith(" \r")
