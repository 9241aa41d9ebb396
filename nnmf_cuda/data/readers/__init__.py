"""What images are read from: one module for each kind of source."""
