"""To be imported before torch and numpy, which read it once: the networks of tests are so small that a second thread
costs more than it brings, and pytest's processes share the cores. Programs that tests start inherit it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
