"""Matplotlib 3.8 with the NumPy 1 that it was made for, drawing without a screen."""

import gemmi
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

assert np.__version__.startswith("1."), np.__version__
assert gemmi.UnitCell(1, 1, 1, 90, 90, 90).volume == 1
plt.figure().canvas.draw()
