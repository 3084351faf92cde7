# Databricks notebook source
# MAGIC %md
# MAGIC # Induced models against the champion's
# MAGIC
# MAGIC A filter is judged by the models that its dataset induces. `round` is `show`: read what MLflow has; or `run`:
# MAGIC one round first, which trains what is not up to date (`dfn loop`). Parameters: `conf` and `set` as in
# MAGIC `00_doctor`; `model` whose champion: dfn_filter or clip.

# COMMAND ----------

from etl.notebook import opened, parameters

given = parameters({"conf": "demo", "set": "", "round": "show", "model": "dfn_filter"}, globals())
project = opened(given, print)

# COMMAND ----------

from etl.loop.loop import Loop
from etl.loop.outcome import table, write_outcome

if given["round"] == "run":
    print(table(write_outcome(project, Loop(project).run())))

# COMMAND ----------

# MAGIC %md Every finished run, and those that judged the champion: arms share seeds, so they are compared pair by pair.

# COMMAND ----------

from etl.loop.standings import CHAMPION, standings

runs = standings(project, project.registered(given["model"]))
headline = project.config.loop.headline
by_seed = runs.groupby(["samples_seen", "arm", "seed"])[headline].mean().unstack("seed")
print(by_seed.assign(mean=by_seed.mean(axis=1), std=by_seed.std(axis=1)).to_string(float_format="%.4f"))

# COMMAND ----------

import matplotlib.pyplot as plt

means = by_seed.mean(axis=1).sort_values()
axis = by_seed.loc[means.index].reset_index(level=0, drop=True).T.plot(style="o", figsize=(9, 5))
axis.set_ylabel(headline)
axis.set_title(f"{project.config.name}: a point is an induced model, a colour an arm")
for (_, arm), value in means.items():
    if arm == CHAMPION:
        axis.axhline(value, color="k", linewidth=0.8)
plt.tight_layout()
