"""The whole: a network, its data and an optimiser setting in, training times and how far to believe
them out.
"""
