# Databricks notebook source
# MAGIC %md
# MAGIC # The gate's decisions: approve, or go back
# MAGIC
# MAGIC `act` is `show`; `approve` (the waiting decision `decision`); or `rollback` (the champion before becomes
# MAGIC champion again). Moving `@champion` encodes nothing: `dfn backfill` does, and then moves `@serving`.
# MAGIC Parameters: `conf` and `set` as in `00_doctor`; `model` dfn_filter or clip; `approver` who is recorded.

# COMMAND ----------

import getpass

from etl.notebook import opened, parameters

defaults = {"conf": "demo", "set": "", "model": "dfn_filter", "act": "show", "decision": ""}
given = parameters(defaults | {"approver": getpass.getuser()}, globals())
project = opened(given, print)

# COMMAND ----------

from etl.loop.promotion import Promotions
from models.tracking import answering

promotions = Promotions(project.store, project.registered(given["model"]))
acts = {
    "show": lambda: None,
    "approve": lambda: promotions.approve(given["decision"], given["approver"]),
    "rollback": lambda: promotions.roll_back(given["approver"]),
}
with answering(project.tracking_uri):
    done = acts[given["act"]]()
print(f"{done.verdict}: {done.challenger}, by {done.approver}" if done else "nothing moved")

# COMMAND ----------

# MAGIC %md All decisions, the newest first: what was compared, by what margin, and who approved it.

# COMMAND ----------

import pandas as pd

from etl.loop.promotion import champions

known = promotions.decisions()
standing = champions(known)
columns = ["decided_at", "decision_id", "verdict", "challenger", "champion_compared", "approver", "reason"]
decisions = pd.DataFrame([vars(decision) for decision in reversed(known)], columns=columns)
print("champion:", standing[-1].challenger if standing else "none")
print(decisions.to_string(index=False))

# COMMAND ----------

import matplotlib.pyplot as plt

values = pd.DataFrame({f"{d.verdict} {d.challenger[:8]}": pd.Series(d.facts.get("values", {})) for d in known})
if not values.dropna(how="all").empty:
    values.plot(style="o", title=f"{given['model']}: what each decision compared, by seed")
    plt.tight_layout()
