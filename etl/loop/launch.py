"""Runs a training job on several ranks by Spark's TorchDistributor, and again after a rank was lost.

Local mode: ranks are processes of this machine. Barrier mode: one Spark task per rank, on executors that see the job's
data, weights and output under the same paths, and this code at its path or in their Python. Spark does not retry a
barrier stage, and torchrun ends all ranks when one is lost: so the whole is started again here, from its last
checkpoint, a bounded number of times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.ml.torch.distributor import TorchDistributor

import models
from etl.stage import UserError
from models.job import TrainJob
from models.pretrain import ERROR, RESULT

MAX_RESTARTS = 3


def launch(
    job: TrainJob,
    *,
    num_processes: int,
    local_mode: bool = True,
    use_gpu: bool = False,
    max_restarts: int = MAX_RESTARTS,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The job's result (OUT/result.json), which all ranks have worked on. A classic Spark session must be active.

    Args:
        use_gpu: a GPU per rank. Barrier mode then wants `spark.task.resource.gpu.amount` of at least 1.

    Raises:
        UserError: what the job itself refuses (its data, a loss that is no number): that is not tried again.
        RuntimeError: ranks were lost more than `max_restarts` times.
    """
    for attempt in range(max_restarts + 1):
        (job.out / ERROR).unlink(missing_ok=True)
        distributor = TorchDistributor(num_processes=num_processes, local_mode=local_mode, use_gpu=use_gpu)
        try:
            distributor.run(_entry(job.model_dump_json(), str(Path(models.__file__).absolute().parents[1])))
        except Exception as error:  # RuntimeError in local mode, whatever Spark makes of it in barrier mode
            if (job.out / ERROR).exists():
                raise UserError((job.out / ERROR).read_text()) from None
            if attempt == max_restarts:
                raise RuntimeError(f"training ended {attempt + 1} times before it was done: {error}") from error
            say(f"a rank was lost; starting again from the last checkpoint ({attempt + 1} of {max_restarts})")
        else:
            break
    found: dict[str, Any] = json.loads((job.out / RESULT).read_text())
    return found


def _entry(job: str, code: str) -> Callable[[], None]:
    """What each rank runs. A function in a function goes over by value: a rank need not find `etl` to begin.

    It returns nothing: ranks on one machine overwrite one another's results.
    """

    def rank() -> None:
        import sys

        sys.path.insert(0, code)
        from models.pretrain import run_rank

        run_rank(job)

    return rank
