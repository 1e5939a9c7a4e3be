"""Measuring convolution algorithms: layers, timing, tables and plots. The command line is `leanconv bench`."""
