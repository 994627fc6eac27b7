"""A search of the family: combinations of answers to the four questions, halved on a held-out part of the training set.

``grid`` says which combinations there are, ``halving`` which of them come next, by the runs that are there, ``page`` what came of it.
"""
