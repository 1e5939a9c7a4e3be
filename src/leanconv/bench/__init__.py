"""Measuring convolution algorithms: layers, timing, tables, plots. The command line is `leanconv bench`."""
