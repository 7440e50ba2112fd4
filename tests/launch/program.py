"""The program under test and mpirun, as the command line of a test names them: test_….py NOTELLM MPIEXEC."""

import os
import subprocess
import sys

NOTELLM, MPIEXEC = sys.argv[1:3]
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}


def run(command, ranks=1, folder=None):
    launcher = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.run([*launcher, NOTELLM, *map(str, command)], capture_output=True, text=True, check=False,
                          env=ENVIRONMENT, timeout=300, cwd=folder)
