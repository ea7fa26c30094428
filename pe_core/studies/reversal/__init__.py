"""Does a model know facts the way round they were not stated?"""
