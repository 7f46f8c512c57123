"""Several nodes through submitit, from Python: `pip install submitit`, then `python submit.py CONFIG --nodes 4`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import submitit
from submitit.helpers import TorchDistributedEnvironment

from hope_train.config import load
from hope_train.run import RESUMABLE, train


class Training:
    """One task per GPU; what submitit sends to the nodes, and sends again when time was up."""

    def __init__(self, config: Path) -> None:
        self.config = config.resolve()

    def __call__(self) -> int:
        """Train as one of many, stopping with everything saved when time is up; submitit gives its exit status."""
        # All GPUs stay visible: hope-train picks the one of its local rank.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        requeue = signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        status = train(load(self.config), self.config.parent)
        if status == RESUMABLE and callable(requeue):
            requeue(signal.SIGUSR2, None)
        return status

    def checkpoint(self) -> object:
        """The run's own checkpoint says where to go on."""
        return submitit.helpers.DelayedSubmission(self)


def main() -> int:
    """Hand the run to Slurm and print the job's number; with --wait its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="per node, one process each")
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--partition")
    parser.add_argument(
        "--cluster", help="slurm, or local to try it on this machine; default: slurm where it is"
    )
    parser.add_argument("--wait", action="store_true", help="until the job is over")
    arguments = parser.parse_args()
    executor = submitit.AutoExecutor(
        arguments.config.parent / "slurm", cluster=arguments.cluster, slurm_max_num_timeout=100
    )
    executor.update_parameters(
        name="hope-train",
        nodes=arguments.nodes,
        tasks_per_node=arguments.gpus,
        gpus_per_node=arguments.gpus,
        timeout_min=60 * arguments.hours,
        slurm_partition=arguments.partition,
        slurm_signal_delay_s=120,
    )
    job = executor.submit(Training(arguments.config))
    sys.stdout.write(f"{job.job_id}\n")
    return max(job.results()) if arguments.wait else 0


if __name__ == "__main__":
    sys.exit(main())
