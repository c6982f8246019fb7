"""Numbers a sequence, which needs the models that anarcism brings."""

import anarcism

assert anarcism.__file__
