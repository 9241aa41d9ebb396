"""The whole experiment, once or over seeds and folds."""
