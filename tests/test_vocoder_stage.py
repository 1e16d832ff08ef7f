"""Stage vocoder as a job: a model folder whose vocoder another run hears its samples with."""

from __future__ import annotations

import pytest

from tiny_data import make_dataset
