# Databricks notebook source
# MAGIC %md
# MAGIC # Score a sample of the pool, from pixels
# MAGIC
# MAGIC The pandas UDF `dfn_score(image, text)` on a sample of the pool, in SQL; then the pairs around the cut, to see.
# MAGIC Runs on Databricks and anywhere else. Parameters are widgets, or variables of the environment (`DFN_CONF=tiny`):
# MAGIC `conf` a name in `conf/` or a path; `set` overrides such as `output=/Volumes/x`, with blanks between them;
# MAGIC `filter` a folder, or `models:/NAME@ALIAS`; `num_pairs` the size of the sample.

# COMMAND ----------

from etl.notebook import opened, parameters

defaults = {"conf": "demo", "set": "", "filter": "models:/dfn_filter@champion", "num_pairs": "200"}
given = parameters(defaults, globals())
project = opened(given, print)
(pool,) = project.config.of_kind("pool")

# COMMAND ----------

# MAGIC %md The sample, with the bytes of its images: which pairs are in it follows from their uids alone.

# COMMAND ----------

from pyspark.sql import functions as F

from etl.notebook import with_images
from etl.tables import PAIRS

pairs = project.store.read(pool, PAIRS).where("status = 'ok'").orderBy(F.md5("uid"))
sample = with_images(project, pool, pairs.limit(int(given["num_pairs"])).toPandas())

# COMMAND ----------

from etl.encode.gpu import make_dfn_score
from etl.filters.filters import filter_folder

filter_ = filter_folder(project, given["filter"])
spark = project.store.spark
spark.createDataFrame(sample[["uid", "text", "image"]]).createOrReplaceTempView("sample")
spark.udf.register("dfn_score", make_dfn_score(project.encoder[1], filter_))
scored = spark.sql("SELECT *, dfn_score(image, text) AS score FROM sample ORDER BY score DESC").toPandas()

# COMMAND ----------

# MAGIC %md The cut of this filter's newest selection (else the 85 % quantile of the sample), and the pairs around it.

# COMMAND ----------

from etl.notebook import show
from etl.selection.receipts import cuts_of
from models.records import FilterRecord

cuts = cuts_of(project.store, pool, FilterRecord.read(filter_).version)
threshold = cuts[-1] if cuts else scored["score"].quantile(0.85)
scored["score"].plot.hist(bins=40, title=f"{len(scored)} pairs, cut at {threshold:.3f}").axvline(threshold, color="k")
near = scored.loc[(scored["score"] - threshold).abs().sort_values().index[:12]].sort_values("score", ascending=False)
show(near["image"], [f"{row.score:.3f} {row.text or ''}" for row in near.itertuples()])
