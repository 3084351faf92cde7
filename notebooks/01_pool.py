# Databricks notebook source
# MAGIC %md
# MAGIC # What is in the pool, and where pairs are lost
# MAGIC
# MAGIC Rows of every table by status, the reasons, what came with each crawl or file, and the funnel of a selection.
# MAGIC Parameters: `conf` and `set` as in `00_doctor`; `selection` an id, empty: the newest; `by` crawl or file.

# COMMAND ----------

from etl.notebook import opened, parameters

given = parameters({"conf": "demo", "set": "", "selection": "", "by": "file"}, globals())
project = opened(given, print)
(pool,) = project.config.of_kind("pool")

# COMMAND ----------

# MAGIC %md Nothing is dropped: a stage's rows in are its rows by status out.

# COMMAND ----------

import pandas as pd

from etl.loop.outcome import rows_by_status

statuses = pd.DataFrame(rows_by_status(project)).T.fillna(0).astype(int)
print(statuses.to_string())

# COMMAND ----------

# MAGIC %md Why pairs are not `ok`, in their own words.

# COMMAND ----------

from pyspark.sql import functions as F

from etl.tables import PAIRS

reason = F.regexp_replace("status_reason", r"\d+", "N").alias("reason")
bad = project.store.read(pool, PAIRS).where("status != 'ok'").groupBy("status", reason).count()
reasons = bad.orderBy(F.desc("count"), "status", "reason").limit(30).toPandas()
print(reasons.to_string(index=False))

# COMMAND ----------

from etl.intake.growth import growth

sources = growth(project.store, pool, given["by"])
for source, counts in sources.items():
    print(source, counts)

# COMMAND ----------

# MAGIC %md The funnel: each step says why the others left.

# COMMAND ----------

import matplotlib.pyplot as plt

from etl.selection.receipts import funnel, newest, receipt_of

chosen = given["selection"]
receipt = receipt_of(project.store, pool, chosen) if chosen else newest(project.store, pool)
steps = pd.DataFrame(funnel(receipt), columns=["step", "pairs", "left"])
print(steps.to_string(index=False))
axis = steps[::-1].plot.barh(x="step", y="pairs", legend=False, title=f"{receipt['rule']['name']} of {pool}")
axis.set_xlabel("pairs")
plt.tight_layout()
