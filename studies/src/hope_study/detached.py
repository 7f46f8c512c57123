"""Imported first by the process that trainings are forked from: it leaves the runner's process group.

A signal to that group must not end it: the runner stops the trainings itself and reads how they ended.
"""

import os

os.setsid()
