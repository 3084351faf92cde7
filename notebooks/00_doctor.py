# Databricks notebook source
# MAGIC %md
# MAGIC # Could a run work here?
# MAGIC
# MAGIC Asked before any GPU time, in under a minute: packages and this code on driver and executors, Delta, addresses
# MAGIC of GPUs against cores, a shard read from an executor, MLflow. Parameters are widgets, or variables of the
# MAGIC environment (`DFN_CONF=tiny`): `conf` names in `conf/` or paths; `set` overrides such as `output=/Volumes/x`,
# MAGIC with blanks between them; `tasks` at least as many as the cluster has slots.

# COMMAND ----------

from etl.notebook import opened, parameters

given = parameters({"conf": "demo", "set": "", "tasks": "16"}, globals())
project = opened(given, print)

# COMMAND ----------

from etl.doctor import Doctor

checks = []
for check in Doctor(project, int(given["tasks"])).checks():
    print(f"{check.name:<12} {check}")
    checks.append(check)

# COMMAND ----------

# MAGIC %md What failed says how to mend it. As a task of a job it fails here, so that what follows does not start.

# COMMAND ----------

from etl.stage import UserError

if failed := [check.name for check in checks if not check.is_ok]:
    raise UserError(f"doctor: wanted all checks to pass; found {', '.join(failed)}; fix: as said above")
