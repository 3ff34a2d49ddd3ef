"""The device side of a step: loads weights, runs the model, samples."""
