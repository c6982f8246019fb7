"""A run as one file, to be made again on another machine: what is in it, how it is read safely, how runs compare.

archive: the format · pack: a run into it · unpack: out of it into a home · compare: two runs, value by value
"""
