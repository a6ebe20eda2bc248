"""The terms of the objective, as pure functions of tensors."""
