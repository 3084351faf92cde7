"""What a pool would take, before it is paid for: rates (`rates.py`), a measured sample (`sample.py`), `costs.py`."""
