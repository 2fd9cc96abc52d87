"""`python -m baton_serving.runtime.child NAME DESCRIPTOR`: what a worker's child processes are started with."""

from __future__ import annotations

import sys

from baton_serving.runtime.process import child_main

if __name__ == "__main__":
    child_main(sys.argv[1], int(sys.argv[2]))
