"Worker processes do what they are told, and outlive nobody."

import signal
import subprocess
import sys

from wegformer.pools import fresh_pool


def test_each_worker_gets_ready_first():
    with fresh_pool(1, prepare=sys.setrecursionlimit, args=(1234,)) as pool:
        assert pool.submit(sys.getrecursionlimit).result() == 1234


def test_workers_end_with_a_process_that_is_killed():
    "Not one stays behind to wait for ever: all of them hold the output's other end, which closes when they are gone."
    program = """
import os, signal
from wegformer.pools import fresh_pool
if __name__ == "__main__":
    assert list(fresh_pool(2).map(abs, [-1, 2])) == [1, 2]
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == -signal.SIGKILL
