# Databricks notebook source
# MAGIC %md
# MAGIC # Score a sample of the pool, from pixels
# MAGIC
# MAGIC The pandas UDF `dfn_score(image, text)` on a sample of the pool, in SQL; then the pairs around the cut, to see.
# MAGIC Runs on Databricks and anywhere else. Parameters are widgets, or variables of the environment (`DFN_CONF=tiny`):
# MAGIC `conf` a name in `conf/` or a path; `set` overrides such as `output=/Volumes/x`, with blanks between them;
# MAGIC `filter` a folder, or `models:/NAME@ALIAS`; `num_pairs` the size of the sample.

# COMMAND ----------

import os

parameters = {"conf": "demo", "set": "", "filter": "models:/dfn_filter@champion", "num_pairs": "200"}
if "dbutils" in globals():
    for name, default in parameters.items():
        dbutils.widgets.text(name, default)
    parameters = {name: dbutils.widgets.get(name) for name in parameters}
else:
    parameters = {name: os.environ.get(f"DFN_{name.upper()}", default) for name, default in parameters.items()}

# COMMAND ----------

from etl.config import folder_of, load
from etl.filters.filters import filter_folder
from etl.project import Project

project = Project(load([parameters["conf"]], parameters["set"].split()), print)
(pool,) = project.config.of_kind("pool")
filter_ = filter_folder(project, parameters["filter"])

# COMMAND ----------

# MAGIC %md The sample, with the bytes of its images: which pairs are in it follows from their uids alone.

# COMMAND ----------

from pyspark.sql import functions as F

from etl.shards import RangeReader
from etl.tables import PAIRS

pairs = project.store.read(pool, PAIRS).where("status = 'ok'").orderBy(F.md5("uid"))
sample = pairs.limit(int(parameters["num_pairs"])).toPandas().sort_values(["shard", "offset_bytes"])
shards = folder_of(project.sources[pool].shards) + "/" + sample["shard"]
with RangeReader() as reader:
    places = zip(shards, sample["offset_bytes"], sample["size_bytes"], strict=True)
    sample["image"] = list(reader.read_many(places))

# COMMAND ----------

from etl.encode.gpu import make_dfn_score

spark = project.store.spark
spark.createDataFrame(sample[["uid", "text", "image"]]).createOrReplaceTempView("sample")
spark.udf.register("dfn_score", make_dfn_score(project.encoder[1], filter_))
scored = spark.sql("SELECT *, dfn_score(image, text) AS score FROM sample ORDER BY score DESC").toPandas()

# COMMAND ----------

# MAGIC %md The cut of this filter's newest selection (else the 85 % quantile of the sample), and the pairs around it.

# COMMAND ----------

import matplotlib.pyplot as plt

from etl.select.receipts import cuts_of
from models.images import decode_rgb
from models.records import FilterRecord

cuts = cuts_of(project.store, pool, FilterRecord.read(filter_).version)
threshold = cuts[-1] if cuts else scored["score"].quantile(0.85)
scored["score"].plot.hist(bins=40, title=f"{len(scored)} pairs, cut at {threshold:.3f}").axvline(threshold, color="k")
near = scored.loc[(scored["score"] - threshold).abs().sort_values().index[:12]].sort_values("score", ascending=False)
for axis, row in zip(plt.subplots(3, 4, figsize=(14, 11))[1].flat, near.itertuples(), strict=False):
    axis.imshow(decode_rgb(row.image))
    axis.set_title(f"{row.score:.3f} {row.text or ''}"[:36], parse_math=False)
    axis.set_axis_off()
