"""AdaptiveNet's figures: trade-offs, searches, reuse, switching, shifted data, other tasks (Figures 7 to 13, Table 3).

Supernets are built once, in this process. Backbones come from MEEDGE_SHARED or are trained. What is searched is judged
on test samples that the search does not see.

Run: python benchmarks/adaptive.py [PART ...]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _adaptive import Device, by_range, reuse, searches, shifted, trade_off
from _adaptive_pictures import draw
from _networks import SHARED, shared
from _results import RESULTS, write_results
from _slimmable import slimmed, whole_networks
from _supernets import BACKBONES, DISTILLED, SUPERNETS, TUNED, built, declared, seconds_of
from _switching import BUDGETS, memory, pool_of, switches, under_load
from _two_stage import TASKS
from _two_stage import run as run_task

from meedge_ray.api.elastic_model import Supernet
from meedge_ray.cli.output import Bars
from meedge_ray.train.progress import Report

OWN, JUDGED = 512, 2000  # samples of the device, and others
SEARCHED = ("resnet56", "mobilenetv2")
ABLATED = ("resnet20", "resnet20-distilled", "resnet20-tuned")
ALPHAS, DRAWS = (0.1, 0.3, 1.0), 10
TASK_SAMPLES = 4000
