"""What the page server survives: a lost machine, two attachments, a store that fails, a disk that is full.

`python -m tests.survival SUITE --seeds N --store KIND` runs a suite at any length, `make survival` all of them at full
length; `test_survival.py` has a few seeds of each.
"""
