"""`killed.py FOLDER SETTINGS CHAINS`: trains in children of its own that it kills after so many seconds, then once in peace.

A process of one thread that has imported everything forks them, so that a kill costs a second and not an import.
"""

import json
import os
import signal
import sys
import time

import torch

from pe_core import Experiment, runner, trainer

torch.set_num_threads(1)
folder, settings, chains = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
trainer.CHECKPOINT_EVERY = 0.02


def child(runs: str) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        try:
            runner.run(Experiment(**settings), runs)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


for number, waits in enumerate(chains):
    runs, kills = f"{folder}/chain-{number}", 0
    for wait in waits:
        pid = child(runs)
        time.sleep(wait)
        if os.waitpid(pid, os.WNOHANG)[0] == 0:  # else it was over before
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
    _, status = os.waitpid(child(runs), 0)
    print(json.dumps({"runs": runs, "kills": kills, "code": os.waitstatus_to_exitcode(status)}), flush=True)
