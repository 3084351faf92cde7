# Databricks notebook source
# MAGIC %md
# MAGIC # Change the rule, and see who enters and who leaves
# MAGIC
# MAGIC The rule is `stages.selection` of the config. Give another one in `rule`, such as
# MAGIC `stages.selection.keep.top_fraction=0.3`, with blanks between its parts: the pool is selected anew, from stored
# MAGIC scores, and compared with the selection `before`. Nothing is encoded. Parameters: `conf` and `set` as in
# MAGIC `00_doctor`; `filter` a folder, `models:/NAME@ALIAS`, or `cosine`; `before` a selection, empty: the newest;
# MAGIC `num_pairs` how many of each side are shown.

# COMMAND ----------

from etl.notebook import opened, parameters

defaults = {"conf": "demo", "set": "", "rule": "stages.selection.keep.top_fraction=0.3", "before": ""}
given = parameters(defaults | {"filter": "models:/dfn_filter@champion", "num_pairs": "8"}, globals())
project = opened(given | {"set": f"{given['set']} {given['rule']}"}, print)
(pool,) = project.config.of_kind("pool")

# COMMAND ----------

from etl.filters.applied import selected
from etl.selection.receipts import newest

before = given["before"] or newest(project.store, pool)["selection_id"]
receipt = selected(project, pool, given["filter"])
after = receipt["selection_id"]
print(f"{receipt['num_rows']:,} pairs kept, threshold {receipt['facts']['threshold']}, selection {after}")

# COMMAND ----------

# MAGIC %md Why pairs moved: another score, another threshold, or another condition.

# COMMAND ----------

from etl.selection.compare import diff, movers

found = diff(project.store, pool, before, after)
print({name: value for name, value in found.items() if name != "why"})
for reason, count in found["why"].items():
    print(f"{count:>8,}  {reason}")

# COMMAND ----------

from etl.notebook import show, with_images

moved = with_images(project, pool, movers(project.store, pool, before, after, int(given["num_pairs"])))
for change, rows in moved.groupby("change"):
    score = rows["score_after"].fillna(rows["score_before"])
    titles = [f"{value:.3f} {text or ''}" for value, text in zip(score, rows["text"], strict=True)]
    show(rows["image"], titles).suptitle(f"{change}: {len(rows)} of {found[change]:,}")
