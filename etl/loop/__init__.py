"""Filters judged by the models that their datasets induce: rounds, training, the gate, promotions, lineage."""
