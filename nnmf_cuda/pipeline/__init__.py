"""The experiment: configuration, stages, and what they save."""
