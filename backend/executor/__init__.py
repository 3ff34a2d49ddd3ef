"""The device side of a step: loads weights, runs the model, samples."""

import stemma.kernels  # noqa: F401 - before torch: it sets how long torch's threads spin
