"""Which encodings answer longer questions than they were trained on?"""
