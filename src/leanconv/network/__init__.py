"""Whole networks: a graph of operators, what each of them means, and one native program for all of them."""
