"""PyTorch multiplies, with NumPy 2 beside it, and OpenMM has a platform to run on."""

import flash_abb
import numpy as np
import openmm
import torch

assert np.__version__.startswith("2."), np.__version__
assert (torch.ones(2, 2) @ torch.ones(2, 2)).numpy().sum() == 8
assert openmm.Platform.getNumPlatforms() > 1, "OpenMM has only its reference platform: its plugins do not load"
assert flash_abb.__file__
