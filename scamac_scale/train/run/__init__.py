"""The folder of a run: settings, metrics, checkpoints, and when to save and stop."""
