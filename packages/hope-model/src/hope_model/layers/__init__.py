"""Layers project, call an op, normalise, project: `forward(x_BTD, state) -> (y_BTD, state)` and `initial(batch)`."""
