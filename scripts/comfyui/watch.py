"""Runs a program until standard input ends, which it does when whoever holds the other end is gone, however that came:

    python watch.py PROGRAM ARGUMENTS...
"""

import os
import subprocess
import sys
import threading


def end_with_input(process):
    while os.read(0, 4096):
        pass
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=end_with_input, args=(child,), daemon=True).start()
sys.exit(child.wait())
