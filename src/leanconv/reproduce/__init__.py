"""`leanconv reproduce`: the comparisons that papers made, made again here, with their claims beside our figures.

`claims` is the table of what papers claim, `checks` judges a claim by measurements, `measure` makes them, `command`
shows the result.
"""
