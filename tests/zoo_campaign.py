"""Ends the work on a zoo at random moments by SIGKILL, and goes on with it.

    python zoo_campaign.py SOURCE TARGET OUT KILLS SEED

A process that has imported everything is forked for each attempt, so an attempt costs nothing but
its work. Prints how many attempts were ended before they were done.
"""

import os
import random
import signal
import sys
import time

import torch

from gpu_align import align_zoo


def attempt(source: str, target: str, out: str) -> None:
    align_zoo(source, target, out, workers=1, shard=2, resume=True)


def main() -> None:
    source, target, out, kills, seed = sys.argv[1:]
    torch.set_num_threads(1)
    draw, ended = random.Random(int(seed)), 0
    for _ in range(int(kills)):
        child = os.fork()
        if child == 0:
            attempt(source, target, out)
            os._exit(0)
        time.sleep(draw.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended += os.WIFSIGNALED(status)
    attempt(source, target, out)
    print(ended)


if __name__ == "__main__":
    main()
