"""Imported by the process that trainings are forked from: a signal to the runner's group must not end it.

The runner stops trainings itself, and they save; without their parent nobody would learn how they ended.
"""

import os

os.setsid()
