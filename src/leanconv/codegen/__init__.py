"""Machine code from Python: an IR builder, the table of targets, and the one module that talks to LLVM."""
