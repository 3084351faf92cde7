"""img2dataset over a list of URLs: LIST OUT RESIZE_PX PROCESSES. Runs in an environment of its own, and imports nothing
of ours.

For every line on stdin it downloads the list into OUT and answers one line of JSON: {"images": N}, or {"error": why}.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def download_all(urls: str, out: str, resize_px: int, processes: int) -> int:
    """As its README has it for web datasets, without wandb; a larger image is made smaller, as ours does it."""
    from img2dataset import download

    shutil.rmtree(out, ignore_errors=True)
    download(
        url_list=urls, input_format="parquet", url_col="url", caption_col="text", output_format="webdataset",
        output_folder=out, processes_count=processes, thread_count=32, image_size=resize_px,
        resize_mode="keep_ratio_largest", resize_only_if_bigger=True, encode_quality=95, encode_format="jpg",
        number_sample_per_shard=1000, enable_wandb=False, timeout=10, retries=0,
    )  # fmt: skip
    stats = [json.loads(path.read_text()) for path in Path(out).glob("*_stats.json")]
    return sum(found["successes"] for found in stats)


def main(urls: str, out: str, resize_px: str, processes: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what its own processes print is no answer
    for _ in sys.stdin:
        answer: dict[str, object]
        try:
            answer = {"images": download_all(urls, out, int(resize_px), int(processes))}
        except Exception as error:  # whatever is wrong with it becomes the row's note
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
