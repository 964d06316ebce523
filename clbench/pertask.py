"""Strategies with a part of their own for each task, and the one place where an unknown task is inferred."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.models.network import Network
from clbench.options import Options
from clbench.strategy import Prediction, Strategy, Task, World
