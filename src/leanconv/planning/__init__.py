"""Planning: what a plan would cost, which one runs under the limits given, and why."""
