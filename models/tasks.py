"""The 38 tasks of DataComp (Gadre et al. 2023, arXiv 2304.14108, appendix N), and averages that say over how many.

Names, sizes and metrics are those of its tasklist.yml, groups those of its aggregate_scores.py. FairFace and UTKFace,
which have no summary metric there, are left out, as there. Folders are what its download_evalsets.py makes; Flickr,
MSCOCO and WinoGAViL, which it takes in another form, are looked for under the same pattern, in the layout of
`models.eval_sets`.

The worst group is over the first field of a sample's metadata: region (FMoW, GeoDE), income (Dollar Street). In FMoW
that includes the region that WILDS calls Other: DataComp's evaluator means to leave it out, by a name which its
metadata, numbers without names, does not hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from models.embedder import Embedder
from models.eval_sets import EvalFolder
from models.evaluate import SetResult, evaluate_folder

Group = Literal["imagenet", "shifts", "vtab", "retrieval", "other"]


class Task(NamedTuple):
    name: str
    folder: str
    size: int
    """Samples of the whole set."""
    metric: str
    """The one of `evaluate_folder` that counts."""
    group: Group


DATACOMP = (
    Task("Caltech-101", "wds_vtab-caltech101_test", 6_085, "mean_per_class", "vtab"),
    Task("CIFAR-10", "wds_cifar10_test", 10_000, "top1", "other"),
    Task("CIFAR-100", "wds_vtab-cifar100_test", 10_000, "top1", "vtab"),
    Task("CLEVR Counts", "wds_vtab-clevr_count_all_test", 15_000, "top1", "vtab"),
    Task("CLEVR Distance", "wds_vtab-clevr_closest_object_distance_test", 15_000, "top1", "vtab"),
    Task("Country211", "wds_country211_test", 21_100, "top1", "other"),
    Task("Describable Textures", "wds_vtab-dtd_test", 1_880, "top1", "vtab"),
    Task("EuroSAT", "wds_vtab-eurosat_test", 5_400, "top1", "vtab"),
    Task("FGVC Aircraft", "wds_fgvc_aircraft_test", 3_333, "mean_per_class", "other"),
    Task("Food-101", "wds_food101_test", 25_250, "top1", "other"),
    Task("GTSRB", "wds_gtsrb_test", 12_630, "top1", "other"),
    Task("ImageNet 1k", "wds_imagenet1k_test", 50_000, "top1", "imagenet"),
    Task("ImageNet Sketch", "wds_imagenet_sketch_test", 50_889, "top1", "shifts"),
    Task("ImageNet v2", "wds_imagenetv2_test", 10_000, "top1", "shifts"),
    Task("ImageNet-A", "wds_imagenet-a_test", 7_500, "top1", "shifts"),
    Task("ImageNet-O", "wds_imagenet-o_test", 2_000, "top1", "shifts"),
    Task("ImageNet-R", "wds_imagenet-r_test", 30_000, "top1", "shifts"),
    Task("KITTI Vehicle Distance", "wds_vtab-kitti_closest_vehicle_distance_test", 711, "top1", "vtab"),
    Task("MNIST", "wds_mnist_test", 10_000, "top1", "other"),
    Task("ObjectNet", "wds_objectnet_test", 18_574, "top1", "shifts"),
    Task("Oxford Flowers-102", "wds_vtab-flowers_test", 6_149, "mean_per_class", "vtab"),
    Task("Oxford-IIIT Pet", "wds_vtab-pets_test", 3_669, "mean_per_class", "vtab"),
    Task("Pascal VOC 2007", "wds_voc2007_test", 14_976, "top1", "other"),
    Task("PatchCamelyon", "wds_vtab-pcam_test", 32_768, "top1", "vtab"),
    Task("Rendered SST2", "wds_renderedsst2_test", 1_821, "top1", "other"),
    Task("RESISC45", "wds_vtab-resisc45_test", 6_300, "top1", "vtab"),
    Task("Stanford Cars", "wds_cars_test", 8_041, "top1", "other"),
    Task("STL-10", "wds_stl10_test", 8_000, "top1", "other"),
    Task("SUN397", "wds_sun397_test", 108_754, "top1", "vtab"),
    Task("SVHN", "wds_vtab-svhn_test", 26_032, "top1", "vtab"),
    Task("Flickr", "wds_flickr_1k_test_image_text_retrieval_test", 1_000, "r1", "retrieval"),
    Task("MSCOCO", "wds_mscoco_2014_5k_test_image_text_retrieval_test", 5_000, "r1", "retrieval"),
    Task("WinoGAViL", "wds_winogavil_test", 3_563, "jaccard_10_12", "retrieval"),
    Task("iWildCam", "wds_wilds-iwildcam_test", 42_791, "macro_f1", "other"),
    Task("Camelyon17", "wds_wilds-camelyon17_test", 85_054, "top1", "other"),
    Task("FMoW", "wds_wilds-fmow_test", 22_108, "worst_group_top1", "other"),
    Task("Dollar Street", "wds_dollar_street_test", 3_503, "worst_group_top5", "other"),
    Task("GeoDE", "wds_geode_test", 12_488, "worst_group_top1", "other"),
)


@dataclass(frozen=True)
class TaskResult:
    """A task's set as it was found; `result` is None where it is absent."""

    task: Task
    result: SetResult | None

    @property
    def value(self) -> float | None:
        """What counts of it, in [0, 1]; None where the set is absent or not whole."""
        return self.result.metrics[self.task.metric] if self.result and self.is_whole else None

    @property
    def is_whole(self) -> bool:
        return self.result is not None and self.result.num_samples == self.task.size


class Average(NamedTuple):
    value: float | None
    """None where no task is there."""
    num_tasks: int
    num_wanted: int


def evaluate_datacomp(model: Embedder, root: Path) -> list[TaskResult]:
    """Every task, in the table's order, on the sets that are folders of `root`.

    Raises:
        EvalSetError: a folder that is there and cannot be read.
    """
    found = {task: root / task.folder for task in DATACOMP if (root / task.folder).is_dir()}
    opened = {task: EvalFolder.open(folder) for task, folder in found.items()}  # all, before the first is encoded
    return [TaskResult(task, evaluate_folder(model, opened[task]) if task in opened else None) for task in DATACOMP]


def averages(results: list[TaskResult]) -> Mapping[str, Average]:
    """The mean of each group and `average` of all, over the tasks whose sets are there and whole."""
    wanted = {group: [r for r in results if r.task.group == group] for group in ("imagenet", "shifts", "vtab",
                                                                                 "retrieval")}  # fmt: skip
    return {name: _average(part) for name, part in (wanted | {"average": results}).items()}


def _average(results: list[TaskResult]) -> Average:
    values = [result.value for result in results if result.value is not None]
    return Average(fmean(values) if values else None, len(values), len(results))
